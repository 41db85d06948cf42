//! A slab with generation-tagged keys: a late answer to something that ended finds nothing.

#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Table<T> {
    pub fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((1, None));
            (self.slots.len() - 1) as u32
        });
        let (generation, slot) = &mut self.slots[index as usize];
        *slot = Some(value);
        u64::from(*generation) << 32 | u64::from(index)
    }

    pub fn get(&self, key: u64) -> Option<&T> {
        let (generation, value) = self.slots.get((key & 0xffff_ffff) as usize)?;
        if u64::from(*generation) == key >> 32 { value.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let (generation, value) = self.slots.get_mut((key & 0xffff_ffff) as usize)?;
        if u64::from(*generation) == key >> 32 { value.as_mut() } else { None }
    }

    pub fn remove(&mut self, key: u64) -> Option<T> {
        let index = (key & 0xffff_ffff) as usize;
        let (generation, value) = self.slots.get_mut(index)?;
        if u64::from(*generation) != key >> 32 {
            return None;
        }
        let taken = value.take()?;
        *generation = generation.wrapping_add(1).max(1);
        self.free.push(index as u32);
        Some(taken)
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_good_for_one_life() {
        let mut table = Table::default();
        let a = table.insert("a");
        assert_eq!(table.remove(a), Some("a"));
        let b = table.insert("b");
        assert_eq!((table.get(a), table.get(b), table.len()), (None, Some(&"b"), 1));
        assert_eq!(table.remove(a), None);
    }
}
