//! Memory for the variable part of objects: one slot of 32-bit words per object, in size classes, so that millions of
//! objects cost no heap allocation each and at most an eighth of slack.

/// Words of one chunk: what a class grows by.
const CHUNK_WORDS: usize = 4096;
const CLASSES: usize = 80;

/// Names a slot. Which class it is of follows from the number of words, which the owner knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot(pub u32);

#[derive(Default)]
struct Class {
    chunks: Vec<Box<[u32]>>,
    slots: u32,
    /// First free slot, plus one; each free slot's first word holds the next in the same form.
    free: u32,
}

/// Slots of words in size classes.
pub struct Arena {
    classes: Vec<Class>,
    bytes: u64,
}

/// Sizes go in eighths of powers of two: 1..16, 18, 20, .. 32, 36, 40, ...
fn class_of(words: usize) -> usize {
    if words <= 16 {
        return words;
    }
    let bits = (words - 1).ilog2() as usize;
    17 + (bits - 4) * 8 + ((words - 1) >> (bits - 3) & 7)
}

fn words_of(class: usize) -> usize {
    if class <= 16 {
        return class;
    }
    let (bits, eighth) = ((class - 17) / 8 + 4, (class - 17) % 8);
    (9 + eighth) << (bits - 3)
}

fn slots_per_chunk(class: usize) -> usize {
    (CHUNK_WORDS / words_of(class)).max(1)
}

impl Arena {
    /// An empty arena.
    pub fn new() -> Arena {
        Arena { classes: (0..CLASSES).map(|_| Class::default()).collect(), bytes: 0 }
    }

    /// Bytes taken from the system.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether two sizes share a class, so that a slot can be kept when an object changes between them.
    pub fn same_class(a: usize, b: usize) -> bool {
        class_of(a) == class_of(b)
    }

    /// A slot for `words` words with unspecified content. Zero words take no memory.
    pub fn allocate(&mut self, words: usize) -> Slot {
        if words == 0 {
            return Slot::default();
        }
        let class = class_of(words);
        if self.classes[class].free == 0 {
            self.grow(class);
        }
        let index = self.classes[class].free - 1;
        let slot = Slot(index);
        self.classes[class].free = self.words(slot, words)[0];
        slot
    }

    fn grow(&mut self, class: usize) {
        let (count, words) = (slots_per_chunk(class), words_of(class));
        let own = &mut self.classes[class];
        let mut chunk = vec![0; count * words].into_boxed_slice();
        for i in 0..count {
            let is_last = i + 1 == count;
            chunk[i * words] = if is_last { own.free } else { own.slots + i as u32 + 2 };
        }
        own.free = own.slots + 1;
        own.slots += count as u32;
        own.chunks.push(chunk);
        self.bytes += (count * words * 4) as u64;
    }

    /// Gives a slot of `words` words back.
    pub fn free(&mut self, slot: Slot, words: usize) {
        if words == 0 {
            return;
        }
        let class = class_of(words);
        let next = self.classes[class].free;
        self.words_mut(slot, words)[0] = next;
        self.classes[class].free = slot.0 + 1;
    }

    /// The words of a slot.
    pub fn words(&self, slot: Slot, words: usize) -> &[u32] {
        if words == 0 {
            return &[];
        }
        let class = class_of(words);
        let (chunk, at) = locate(slot, class);
        &self.classes[class].chunks[chunk][at..at + words]
    }

    /// The words of a slot, to be written.
    pub fn words_mut(&mut self, slot: Slot, words: usize) -> &mut [u32] {
        if words == 0 {
            return &mut [];
        }
        let class = class_of(words);
        let (chunk, at) = locate(slot, class);
        &mut self.classes[class].chunks[chunk][at..at + words]
    }
}

fn locate(slot: Slot, class: usize) -> (usize, usize) {
    let per_chunk = slots_per_chunk(class);
    let index = slot.0 as usize;
    (index / per_chunk, index % per_chunk * words_of(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_asked_for_with_little_slack() {
        for words in 1..=3072 {
            let class = class_of(words);
            assert!(class < CLASSES);
            assert!(words_of(class) >= words && words_of(class) <= words + words / 8 + 1, "{words}");
            assert!(words == 1 || class_of(words - 1) <= class);
        }
    }

    #[test]
    fn slots_do_not_overlap_and_are_reused() {
        let mut arena = Arena::new();
        let slots: Vec<_> = (0..3000u32)
            .map(|i| {
                let slot = arena.allocate(3);
                arena.words_mut(slot, 3).fill(i);
                slot
            })
            .collect();
        for (i, &slot) in slots.iter().enumerate() {
            assert_eq!(arena.words(slot, 3), [i as u32; 3]);
        }
        let bytes = arena.bytes();
        slots.iter().for_each(|&s| arena.free(s, 3));
        (0..3000).for_each(|_| _ = arena.allocate(3));
        assert_eq!(arena.bytes(), bytes);
    }
}
