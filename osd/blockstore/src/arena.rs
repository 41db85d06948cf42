//! Memory for the variable part of objects: one slot of 32-bit words per object, in size classes, so that millions of
//! objects cost no heap allocation each and at most an eighth of slack.
//!
//! Each class is dense: its slots fill equally large chunks one after the other, and a slot that is given back is filled
//! with the last one of its class. So a class never holds a chunk it does not need. That matters because objects change
//! classes together: as an image breaks up, all its objects pass through one class after the other, and if every class kept
//! what it once had (as free lists would), three quarters of the memory would lie in classes that nobody is in any more.
//!
//! The price is the owner's name in every slot (8 bytes), so that the owner of a slot that was moved can be told, and a
//! move per slot given back: less than the rebuilding of the object that comes with it.

/// Words of one chunk: what a class grows and shrinks by.
const CHUNK_WORDS: usize = 16 << 10;
const CHUNK_BYTES: u64 = (CHUNK_WORDS * size_of::<u32>()) as u64;
/// Most chunks kept for the next class that grows; more are given back to the system.
const SPARE_CHUNKS_MAX: usize = 16;
const CLASSES: usize = 77;
const OWNER_WORDS: usize = size_of::<Owner>() / size_of::<u32>();
/// The largest object: single sectors, an extent (two words) and a checksum each.
const WORDS_MAX: usize = 3 * cluster_proto::limits::SECTORS_PER_OBJECT_MAX as usize;

const _: () = assert!(class_of(WORDS_MAX) < CLASSES && words_of(CLASSES - 1) + OWNER_WORDS <= CHUNK_WORDS);

/// Names a slot until it is moved. Which class it is of follows from the number of words, which the owner knows.
/// High bits: number of the chunk in the class; low bits: number of the slot in the chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot(pub u32);

/// What a slot says of whose it is; means nothing here.
pub type Owner = [u32; 2];

/// The words of `owner` now lie in `slot`.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// As told to [`Arena::allocate`].
    pub owner: Owner,
    /// In the same class.
    pub slot: Slot,
}

type Chunk = Box<[u32; CHUNK_WORDS]>;

struct Class {
    /// All full, but for the last.
    chunks: Vec<Chunk>,
    /// Slots in use in the last chunk; `per_chunk` if there is none.
    used: u32,
    per_chunk: u32,
    /// Bits of a slot that number it in its chunk. A class can have at least 2^31 slots, as many as objects are allowed.
    bits: u32,
    /// Words of a slot with its owner.
    stride: usize,
}

/// Slots of words in size classes.
pub struct Arena {
    classes: Vec<Class>,
    spare: Vec<Chunk>,
    bytes: u64,
}

/// Sizes go in eighths of powers of two: 1..16, 18, 20, .. 32, 36, 40, ...
const fn class_of(words: usize) -> usize {
    if words <= 16 {
        return words;
    }
    let bits = (words - 1).ilog2() as usize;
    17 + (bits - 4) * 8 + ((words - 1) >> (bits - 3) & 7)
}

const fn words_of(class: usize) -> usize {
    if class <= 16 {
        return class;
    }
    let (bits, eighth) = ((class - 17) / 8 + 4, (class - 17) % 8);
    (9 + eighth) << (bits - 3)
}

impl Class {
    fn new(words: usize) -> Class {
        let stride = words + OWNER_WORDS;
        let per_chunk = (CHUNK_WORDS / stride) as u32;
        let bits = per_chunk.next_power_of_two().ilog2();
        Class { chunks: Vec::new(), used: per_chunk, per_chunk, bits, stride }
    }

    /// The chunk of a slot and where in it the slot begins.
    fn locate(&self, slot: Slot) -> (usize, usize) {
        ((slot.0 >> self.bits) as usize, (slot.0 & ((1 << self.bits) - 1)) as usize * self.stride)
    }

    /// The slot of that number in the last chunk.
    fn in_last_chunk(&self, number: u32) -> Slot {
        Slot(((self.chunks.len() - 1) as u32) << self.bits | number)
    }

    /// Takes the last slot's content to `slot`.
    fn fill(&mut self, slot: Slot) -> Moved {
        let (to_chunk, to) = self.locate(slot);
        let from = (self.used - 1) as usize * self.stride;
        let (last, others) = self.chunks.split_last_mut().expect("a slot is in use");
        match others.get_mut(to_chunk) {
            Some(chunk) => chunk[to..to + self.stride].copy_from_slice(&last[from..from + self.stride]),
            None => last.copy_within(from..from + self.stride, to),
        }
        let owner = self.chunks[to_chunk][to..].first_chunk().expect("as long as a slot");
        Moved { owner: *owner, slot }
    }
}

impl Arena {
    /// An empty arena.
    pub fn new() -> Arena {
        Arena { classes: (0..CLASSES).map(|class| Class::new(words_of(class))).collect(), spare: Vec::new(), bytes: 0 }
    }

    /// Bytes taken from the system.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of these, bytes that no class has.
    #[cfg(test)]
    pub fn spare_bytes(&self) -> u64 {
        self.spare.len() as u64 * CHUNK_BYTES
    }

    /// Whether two sizes share a class, so that a slot can be kept when an object changes between them.
    pub fn same_class(a: usize, b: usize) -> bool {
        class_of(a) == class_of(b)
    }

    /// A slot for `words` words with unspecified content. Zero words take no memory.
    pub fn allocate(&mut self, words: usize, owner: Owner) -> Slot {
        if words == 0 {
            return Slot::default();
        }
        let class = class_of(words);
        if self.classes[class].used == self.classes[class].per_chunk {
            let chunk = self.take_chunk();
            self.classes[class].chunks.push(chunk);
            self.classes[class].used = 0;
        }
        let own = &mut self.classes[class];
        let slot = own.in_last_chunk(own.used);
        own.used += 1;
        let (chunk, at) = own.locate(slot);
        own.chunks[chunk][at..at + OWNER_WORDS].copy_from_slice(&owner);
        slot
    }

    /// Gives a slot of `words` words back. Another slot of its class may be moved to its place.
    #[must_use]
    pub fn free(&mut self, slot: Slot, words: usize) -> Option<Moved> {
        if words == 0 {
            return None;
        }
        let own = &mut self.classes[class_of(words)];
        let moved = (slot != own.in_last_chunk(own.used - 1)).then(|| own.fill(slot));
        own.used -= 1;
        if own.used == 0 {
            own.used = own.per_chunk;
            let chunk = own.chunks.pop();
            self.give_back(chunk);
        }
        moved
    }

    fn take_chunk(&mut self) -> Chunk {
        self.spare.pop().unwrap_or_else(|| {
            self.bytes += CHUNK_BYTES;
            // By way of the heap, because a chunk is large for the stack.
            vec![0; CHUNK_WORDS].into_boxed_slice().try_into().expect("so many words")
        })
    }

    fn give_back(&mut self, chunk: Option<Chunk>) {
        self.spare.extend(chunk);
        if self.spare.len() > SPARE_CHUNKS_MAX {
            self.spare.pop();
            self.bytes -= CHUNK_BYTES;
        }
    }

    /// The words of a slot.
    pub fn words(&self, slot: Slot, words: usize) -> &[u32] {
        if words == 0 {
            return &[];
        }
        let own = &self.classes[class_of(words)];
        let (chunk, at) = own.locate(slot);
        &own.chunks[chunk][at + OWNER_WORDS..][..words]
    }

    /// The words of a slot, to be written.
    pub fn words_mut(&mut self, slot: Slot, words: usize) -> &mut [u32] {
        if words == 0 {
            return &mut [];
        }
        let own = &mut self.classes[class_of(words)];
        let (chunk, at) = own.locate(slot);
        &mut own.chunks[chunk][at + OWNER_WORDS..][..words]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_asked_for_with_little_slack() {
        for words in 1..=WORDS_MAX {
            let class = class_of(words);
            assert!(class < CLASSES);
            assert!(words_of(class) >= words && words_of(class) <= words + words / 8 + 1, "{words}");
            assert!(words == 1 || class_of(words - 1) <= class);
        }
    }

    #[test]
    fn every_class_has_slots_for_all_objects() {
        for own in Arena::new().classes {
            let chunks = 1u64 << (32 - own.bits);
            assert!(chunks * u64::from(own.per_chunk) >= 1 << 31, "stride {}", own.stride);
            assert!(own.per_chunk > 0 && own.per_chunk <= 1 << own.bits);
        }
    }

    /// Objects that know what their slots must hold.
    struct Model {
        arena: Arena,
        /// By owner: slot, words, and what the content was made of.
        objects: Vec<(Slot, usize, u32)>,
        stamp: u32,
        seed: u64,
    }

    impl Model {
        fn new(objects: usize, seed: u64) -> Model {
            Model { arena: Arena::new(), objects: vec![(Slot::default(), 0, 0); objects], stamp: 0, seed }
        }

        fn random(&mut self, below: usize) -> usize {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.seed >> 33) as usize % below
        }

        fn content(stamp: u32, words: usize) -> impl Iterator<Item = u32> {
            (0..words as u32).map(move |i| stamp.wrapping_mul(0x9e37_79b1) ^ i)
        }

        fn check(&self, owner: usize) {
            let (slot, words, stamp) = self.objects[owner];
            assert!(self.arena.words(slot, words).iter().copied().eq(Model::content(stamp, words)), "{owner}");
        }

        /// Frees the object's slot, and takes another for so many words.
        fn resize(&mut self, owner: usize, words: usize) {
            self.check(owner);
            let (slot, old, _) = self.objects[owner];
            if let Some(moved) = self.arena.free(slot, old) {
                let [to, check] = moved.owner;
                assert!(to == !check && to as usize != owner && Arena::same_class(old, self.objects[to as usize].1));
                self.objects[to as usize].0 = moved.slot;
                self.check(to as usize);
            }
            let slot = self.arena.allocate(words, [owner as u32, !(owner as u32)]);
            self.stamp += 1;
            self.objects[owner] = (slot, words, self.stamp);
            let content = Model::content(self.stamp, words);
            self.arena.words_mut(slot, words).iter_mut().zip(content).for_each(|(word, new)| *word = new);
        }

        fn live_bytes(&self) -> u64 {
            self.objects.iter().filter(|o| o.1 > 0).map(|o| 4 * (o.1 + OWNER_WORDS) as u64).sum()
        }

        /// Bytes that may be lost whatever the load: a chunk per class, and the spare ones.
        fn bytes_lost_max() -> u64 {
            (CLASSES + SPARE_CHUNKS_MAX) as u64 * CHUNK_BYTES
        }

        /// Bytes held for each that is needed. The spare chunks do not count: they are lost once.
        fn overhead(&self) -> f64 {
            (self.arena.bytes() - self.arena.spare_bytes()) as f64 / self.live_bytes() as f64
        }
    }

    #[test]
    fn random_sizes_keep_their_content_and_no_more_memory_than_they_need() {
        for seed in 0..8 {
            let mut model = Model::new(1500, seed);
            for _ in 0..20_000 {
                let owner = model.random(1500);
                let most = 1 << model.random(12);
                let words = if model.random(4) == 0 { 0 } else { (1 + model.random(most)).min(WORDS_MAX) };
                model.resize(owner, words);
                // Slack of classes, and what is left over at the ends of chunks.
                assert!(model.arena.bytes() <= model.live_bytes() * 5 / 4 + Model::bytes_lost_max());
            }
            (0..1500).for_each(|owner| model.check(owner));
            (0..1500).for_each(|owner| model.resize(owner, 0));
            assert!(model.arena.bytes() <= SPARE_CHUNKS_MAX as u64 * CHUNK_BYTES);
            assert!(model.arena.classes.iter().all(|c| c.chunks.is_empty()));
        }
    }

    #[test]
    fn objects_that_grow_together_leave_nothing_behind() {
        const OBJECTS: usize = 4096;
        let mut model = Model::new(OBJECTS, 1);
        (0..OBJECTS).for_each(|owner| model.resize(owner, 2 + 256));
        let mut worst: f64 = 0.0;
        // A sector of its own among 256 splits an extent: two more extents until there are as many as sectors.
        for step in 0..OBJECTS * 200 {
            let owner = model.random(OBJECTS);
            let words = model.objects[owner].1;
            let grown = (words + 4).min(768);
            if Arena::same_class(words, grown) {
                let stamp = model.objects[owner].2;
                model.objects[owner].1 = grown;
                let content = Model::content(stamp, grown);
                let slot = model.objects[owner].0;
                model.arena.words_mut(slot, grown).iter_mut().zip(content).for_each(|(word, new)| *word = new);
            } else {
                model.resize(owner, grown);
            }
            if step % OBJECTS == 0 {
                worst = worst.max(model.overhead());
            }
        }
        (0..OBJECTS).for_each(|owner| model.check(owner));
        assert!(model.objects.iter().filter(|o| o.1 == 768).count() > OBJECTS * 9 / 10);
        assert!(worst < 1.2, "{worst}");
        assert!(model.overhead() < 1.05, "{}", model.overhead());
    }

    #[test]
    fn a_million_tiny_objects_cost_their_words_and_owners() {
        const OBJECTS: usize = 1 << 20;
        let mut model = Model::new(OBJECTS, 1);
        (0..OBJECTS).for_each(|owner| model.resize(owner, 3));
        assert!(model.overhead() < 1.01, "{}", model.overhead());
        for step in 0..OBJECTS {
            let owner = model.random(OBJECTS);
            let words = 3 * (1 + model.random(4));
            model.resize(owner, words);
            assert!(step % 4096 != 0 || model.overhead() < 1.05);
        }
    }
}
