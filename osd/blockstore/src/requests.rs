//! Requests of clients that took effect and may be repeated: client -> floor and applied {seq -> version, object}.

use std::collections::BTreeMap;

use cluster_proto::ids::{ClientId, ObjectId, Version};
use cluster_proto::shard::{AppliedRequest, Origin, RequestState};

use crate::format::checkpoint::{ContentWriter, StoredClient, StoredRequest};
use crate::format::log::{Lsn, REQUESTS_PER_RESTORE_MAX};
use crate::layer::LayerPart;

/// Memory of one remembered request, tree overhead included. Bytes, estimated.
const REQUEST_MEMORY: u64 = 80;

/// Counters of requests by object.
const OBJECT_HASHES: usize = 1 << 12;

fn hash_of(object: &ObjectId) -> usize {
    let layer = object.layer.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(object.pool.0) << 32;
    let mixed = (layer ^ u64::from(object.index)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 52) as usize % OBJECT_HASHES
}

#[derive(Default)]
struct Client {
    floor: u64,
    last_lsn: Lsn,
    applied: BTreeMap<u64, (Version, ObjectId)>,
}

/// What the store remembers of clients. Bounded: when it is full, the clients that were silent longest are forgotten,
/// then the oldest requests of the remaining one.
pub struct Requests {
    clients: BTreeMap<ClientId, Client>,
    count: u64,
    /// Requests by a hash of their object: most objects have none, which is to be known without a search.
    by_object: Box<[u32; OBJECT_HASHES]>,
    clients_max: u64,
    requests_max: u64,
}

impl Requests {
    /// Nothing remembered.
    pub fn new(clients_max: u64, requests_max: u64) -> Requests {
        let by_object = Box::new([0; OBJECT_HASHES]);
        Requests { clients: BTreeMap::new(), count: 0, by_object, clients_max, requests_max }
    }

    /// Remembers that a request took effect.
    pub fn apply(&mut self, origin: &Origin, version: Version, object: ObjectId, lsn: Lsn) {
        if origin.client == ClientId(0) {
            return;
        }
        self.raise_floor(origin.client, origin.floor);
        self.remember(origin.client, origin.seq, version, object, lsn);
        self.enforce_limits();
    }

    /// Remembers requests that came with a restored object.
    pub fn apply_restored(&mut self, requests: &[AppliedRequest], object: ObjectId, lsn: Lsn) {
        for r in requests {
            if r.client == ClientId(0) {
                self.undo_above(r.version, object);
            } else {
                self.remember(r.client, r.seq, r.version, object, lsn);
            }
        }
        self.enforce_limits();
    }

    /// Forgets the requests that changed an object above a version: they were undone.
    fn undo_above(&mut self, version: Version, object: ObjectId) {
        if self.by_object[hash_of(&object)] == 0 {
            return;
        }
        let mut gone = 0;
        for client in self.clients.values_mut() {
            let before = client.applied.len();
            client.applied.retain(|_, (v, o)| *o != object || *v <= version);
            gone += before - client.applied.len();
        }
        self.count -= gone as u64;
        self.by_object[hash_of(&object)] -= gone as u32;
    }

    /// Forgets all requests that changed an object: it is not here any more.
    pub fn forget_object(&mut self, object: &ObjectId) {
        self.undo_above(Version::NONE, *object);
    }

    fn removed(&mut self, object: &ObjectId) {
        self.count -= 1;
        self.by_object[hash_of(object)] -= 1;
    }

    /// Forgets a request whose change was taken back, so that it can be done again.
    pub fn forget(&mut self, origin: &Origin, version: Version, object: ObjectId) {
        let Some(own) = self.clients.get_mut(&origin.client) else { return };
        if own.applied.get(&origin.seq) == Some(&(version, object)) {
            own.applied.remove(&origin.seq);
            self.removed(&object);
        }
    }

    fn remember(&mut self, client: ClientId, seq: u64, version: Version, object: ObjectId, lsn: Lsn) {
        let own = self.clients.entry(client).or_default();
        own.last_lsn = own.last_lsn.max(lsn);
        if seq < own.floor {
            return;
        }
        let before = own.applied.insert(seq, (version, object));
        self.count += 1;
        self.by_object[hash_of(&object)] += 1;
        if let Some((_, before)) = before {
            self.removed(&before);
        }
    }

    /// Forgets the requests below a client's floor. A client never heard of is not remembered for it.
    pub fn raise_floor(&mut self, client: ClientId, floor: u64) {
        let Self { clients, count, by_object, .. } = self;
        let Some(own) = clients.get_mut(&client) else { return };
        if floor > own.floor {
            own.floor = floor;
            while let Some(first) = own.applied.first_entry().filter(|first| *first.key() < floor) {
                let (_, object) = first.remove();
                *count -= 1;
                by_object[hash_of(&object)] -= 1;
            }
        }
    }

    fn enforce_limits(&mut self) {
        if self.clients.len() as u64 <= self.clients_max && self.count <= self.requests_max {
            return;
        }
        let mut silent: Vec<_> = self.clients.iter().map(|(&id, c)| (c.last_lsn, id)).collect();
        silent.sort_unstable();
        silent.pop();
        // An eighth more than needed, so that the next eviction is far away.
        let (clients, requests) = (self.clients_max * 7 / 8, self.requests_max * 7 / 8);
        for (_, id) in silent {
            if self.clients.len() as u64 <= clients.max(1) && self.count <= requests {
                return;
            }
            for (_, object) in self.clients.remove(&id).unwrap_or_default().applied.into_values() {
                self.removed(&object);
            }
        }
        let Self { clients, count, by_object, .. } = self;
        for client in clients.values_mut() {
            while *count > requests
                && let Some((_, (_, object))) = client.applied.pop_first()
            {
                *count -= 1;
                by_object[hash_of(&object)] -= 1;
            }
        }
    }

    /// What is known of a request.
    pub fn state(&self, client: ClientId, seq: u64) -> RequestState {
        match self.clients.get(&client) {
            Some(own) if seq < own.floor => RequestState::BelowFloor,
            Some(own) => own.applied.get(&seq).map_or(RequestState::Unknown, |&(v, _)| RequestState::Applied(v)),
            None => RequestState::Unknown,
        }
    }

    /// Remembered requests that changed an object, ascending; the newest if there are too many for one message.
    pub fn of_object(&self, object: &ObjectId) -> Vec<AppliedRequest> {
        let mut found: Vec<_> = self
            .clients
            .iter()
            .flat_map(|(&client, own)| own.applied.iter().map(move |(&seq, &(version, o))| (client, seq, version, o)))
            .filter(|(.., o)| o == object)
            .map(|(client, seq, version, _)| AppliedRequest { client, seq, version })
            .collect();
        if found.len() > REQUESTS_PER_RESTORE_MAX {
            found.sort_unstable_by_key(|r| std::cmp::Reverse(r.version));
            found.truncate(REQUESTS_PER_RESTORE_MAX);
            found.sort_unstable();
        }
        found
    }

    /// Requests remembered.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of memory, estimated.
    pub fn memory_bytes(&self) -> u64 {
        self.count * REQUEST_MEMORY + self.clients.len() as u64 * size_of::<Client>() as u64
    }

    /// Takes a client in from a checkpoint.
    pub fn load_client(&mut self, stored: StoredClient) {
        let own = self.clients.entry(stored.client).or_default();
        own.floor = stored.floor;
        own.last_lsn = stored.last_lsn;
    }

    /// Takes a request in from a checkpoint, after its client.
    pub fn load_request(&mut self, stored: StoredRequest) {
        self.remember(stored.client, stored.seq, stored.version, stored.object, Lsn(0));
    }

    /// The checkpoint's content.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = ContentWriter::default();
        for (&client, own) in &self.clients {
            writer.client(StoredClient { client, floor: own.floor, last_lsn: own.last_lsn });
        }
        let mut layers = BTreeMap::new();
        for (&client, own) in &self.clients {
            for (&seq, &(version, object)) in &own.applied {
                let layer = LayerPart::of(&object);
                let number = *layers.entry(layer.words()).or_insert_with(|| writer.layer(layer));
                writer.request(number, StoredRequest { client, seq, version, object });
            }
        }
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checkpoint::ContentReader;
    use cluster_proto::ids::{LayerId, PoolId};

    const OBJECT: ObjectId = ObjectId { pool: PoolId(1), lineage: LayerId(2), layer: LayerId(3), index: 4, part: 6 };

    fn origin(client: u64, seq: u64, floor: u64) -> Origin {
        Origin { client: ClientId(client), seq, floor }
    }

    #[test]
    fn floors_prune_and_answer() {
        let mut r = Requests::new(10, 100);
        r.apply(&origin(7, 5, 3), Version(1), OBJECT, Lsn(1));
        r.apply(&origin(7, 6, 3), Version(2), OBJECT, Lsn(2));
        assert_eq!(r.state(ClientId(7), 5), RequestState::Applied(Version(1)));
        assert_eq!(r.state(ClientId(7), 4), RequestState::Unknown);
        assert_eq!(r.state(ClientId(7), 2), RequestState::BelowFloor);
        r.raise_floor(ClientId(7), 6);
        assert_eq!(r.state(ClientId(7), 5), RequestState::BelowFloor);
        assert_eq!((r.count(), r.of_object(&OBJECT).len()), (1, 1));
        r.apply(&Origin::NONE, Version(9), OBJECT, Lsn(3));
        assert_eq!(r.count(), 1);
    }

    #[test]
    fn only_exactly_what_was_taken_back_is_forgotten() {
        let mut r = Requests::new(10, 100);
        r.apply(&origin(7, 5, 3), Version(1), OBJECT, Lsn(1));
        r.apply(&origin(7, 6, 3), Version(2), OBJECT, Lsn(2));
        r.forget(&origin(7, 6, 6), Version(1), OBJECT);
        r.forget(&origin(7, 6, 6), Version(2), OBJECT.shard(1));
        r.forget(&origin(8, 6, 6), Version(2), OBJECT);
        assert_eq!(r.count(), 2);
        r.forget(&origin(7, 6, 6), Version(2), OBJECT);
        assert_eq!((r.count(), r.state(ClientId(7), 6)), (1, RequestState::Unknown));
        assert_eq!(r.state(ClientId(7), 5), RequestState::Applied(Version(1)));
    }

    #[test]
    fn the_table_survives_its_checkpoint() {
        let mut r = Requests::new(10, 100);
        for seq in 10..20 {
            r.apply(&origin(seq % 3 + 1, seq, 5), Version(seq), OBJECT, Lsn(seq));
        }
        let bytes = r.encode();
        let mut reader = ContentReader::new(&bytes).expect("sensible");
        assert!(reader.object().expect("sensible").is_none());
        let mut loaded = Requests::new(10, 100);
        while let Some(c) = reader.client().expect("sensible") {
            loaded.load_client(c);
        }
        while let Some(q) = reader.request().expect("sensible") {
            loaded.load_request(q);
        }
        assert_eq!(loaded.encode(), bytes);
        assert_eq!(loaded.of_object(&OBJECT), r.of_object(&OBJECT));
    }

    #[test]
    fn a_full_table_forgets_the_silent_first() {
        let mut r = Requests::new(4, 16);
        for seq in 1..=100 {
            r.apply(&origin(1, seq, 0), Version(seq), OBJECT, Lsn(2 * seq));
            r.apply(&origin(seq % 3 + 2, seq, 0), Version(seq), OBJECT, Lsn(2 * seq + 1));
            assert!(r.count() <= 16);
        }
        assert!(matches!(r.state(ClientId(100 % 3 + 2), 100), RequestState::Applied(_)));
    }
}
