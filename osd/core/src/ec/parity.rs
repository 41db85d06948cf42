//! Whether the shards of an object fit each other, told from their sums alone (`cluster_proto::planes`): no data moves.
//!
//! A row is compared by computing from the first shards, as many as make up the object, what each of the others must be. These are the data
//! shards if all are there, and what is computed is the parity.

use cluster_proto::ids::Version;
use cluster_proto::layout::SectorRange;
use cluster_proto::planes::{Planes, remainder_of_product};
use cluster_proto::shard::Sums;
use erasure::{Code, images};

/// The images of bits under multiplication by 1.
const SAME: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// What a member told of its shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ShardSums {
    pub peer: usize,
    pub part: u8,
    pub version: Version,
    pub extents: Vec<SectorRange>,
    pub kind: Sums,
    /// Of each sector of the extents as many as the kind has.
    pub sums: Vec<u32>,
}

/// Set of shards, by number.
pub(crate) type PartMask = u32;

/// Rows whose shards do not fit each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Misfit {
    pub rows: SectorRange,
    /// The shards that are not what the first ones say.
    pub parts: PartMask,
}

/// The sums that a code needs: with plain XOR parity those of whole sectors.
pub(crate) fn sums_for(code: &Code) -> Sums {
    let is_xor = (0..code.parity()).all(|row| (0..code.data()).all(|part| code.coefficient(row, part) == 1));
    if is_xor { Sums::Whole } else { Sums::Planes }
}

/// The sums of one shard, row by row.
struct Shard {
    part: u8,
    /// Values for each row.
    per: usize,
    sums: Vec<u32>,
}

impl Shard {
    /// Of `rows` rows. Bounded by the largest object: members tell no more.
    fn new(told: &ShardSums, rows: u32) -> Self {
        let per = told.kind.per_sector();
        let mut sums = vec![0; rows as usize * per];
        let mut rest = &told.sums[..];
        for extent in &told.extents {
            let (own, after) = rest.split_at(rest.len().min(extent.count as usize * per));
            let at = extent.start as usize * per;
            sums[at..at + own.len()].copy_from_slice(own);
            rest = after;
        }
        Self { part: told.part, per, sums }
    }

    /// The remainder that the row has after a multiplication.
    fn product(&self, row: u32, images: &[u8; 8]) -> u32 {
        let at = row as usize * self.per;
        let sums = &self.sums[at..at + self.per];
        match (<&Planes>::try_from(sums), images) {
            (Ok(planes), _) => remainder_of_product(planes, images),
            // Of a whole sector only that product is known; others do not come up, see `sums_for`.
            (Err(_), images) => {
                if images[0] == 1 {
                    sums[0]
                } else {
                    0
                }
            }
        }
    }

    fn is_zero(&self, row: u32) -> bool {
        let at = row as usize * self.per;
        self.sums[at..at + self.per].iter().all(|sum| *sum == 0)
    }
}

/// What one shard must be, as a sum over others.
struct Rule {
    shard: usize,
    /// Shards and what they are multiplied with.
    terms: Vec<(usize, [u8; 8])>,
}

impl Rule {
    fn holds(&self, shards: &[Shard], row: u32) -> bool {
        let sum = self.terms.iter().fold(0, |sum, (shard, images)| sum ^ shards[*shard].product(row, images));
        sum == shards[self.shard].product(row, &SAME)
    }
}

/// Shards of one object, to be compared.
pub(crate) struct Comparison<'a> {
    code: &'a Code,
    /// By number.
    shards: Vec<Shard>,
    rows: u32,
}

impl<'a> Comparison<'a> {
    /// None if there is nothing to compare: no more shards than make up the object, of different versions, or summed up otherwise than is
    /// needed.
    pub fn new(code: &'a Code, told: &[ShardSums]) -> Option<Self> {
        let first = told.first()?;
        let kind = sums_for(code);
        let fits = |other: &ShardSums| other.version == first.version && other.kind == kind;
        if told.len() <= code.data() || !told.iter().all(fits) {
            return None;
        }
        let rows = told.iter().flat_map(|told| &told.extents).map(|extent| extent.end()).max().unwrap_or(0);
        let mut shards: Vec<_> = told.iter().map(|told| Shard::new(told, rows)).collect();
        shards.sort_unstable_by_key(|shard| shard.part);
        Some(Self { code, shards, rows })
    }

    /// Whether all data shards are among those compared.
    pub fn has_all_data(&self) -> bool {
        self.shards.iter().zip(0..).take(self.code.data()).all(|(shard, part)| shard.part == part)
    }

    /// The shards that are computed from the data, or from what stands for it.
    pub fn computed(&self) -> PartMask {
        self.shards[self.code.data()..].iter().fold(0, |mask, shard| mask | 1 << shard.part)
    }

    /// What shards must be, given the first of those that are not left out.
    fn rules(&self, left_out: Option<usize>) -> Vec<Rule> {
        let chosen: Vec<usize> = (0..self.shards.len()).filter(|shard| Some(*shard) != left_out).collect();
        let (first, others) = chosen.split_at(chosen.len().min(self.code.data()));
        let parts: Vec<usize> = first.iter().map(|shard| self.shards[*shard].part.into()).collect();
        let rule = |shard: &usize| {
            let weights = self.code.weights(&parts, self.shards[*shard].part.into());
            debug_assert!(weights.is_ok(), "as many different shards as the code needs");
            let terms = first.iter().zip(weights.ok()?).map(|(shard, weight)| (*shard, images(weight)));
            Some(Rule { shard: *shard, terms: terms.collect() })
        };
        others.iter().filter_map(rule).collect()
    }

    /// All rows that do not fit, those next to each other that fail in the same way together.
    pub fn misfits(&self) -> Vec<Misfit> {
        let rules = self.rules(None);
        let mut found: Vec<Misfit> = Vec::new();
        for row in (0..self.rows).filter(|row| !self.shards.iter().all(|shard| shard.is_zero(*row))) {
            let broken = rules.iter().filter(|rule| !rule.holds(&self.shards, row));
            let parts = broken.fold(0, |mask, rule| mask | 1 << self.shards[rule.shard].part);
            match found.last_mut() {
                _ if parts == 0 => {}
                Some(last) if last.parts == parts && last.rows.end() == row => last.rows.count += 1,
                _ => found.push(Misfit { rows: SectorRange::new(row, 1), parts }),
            }
        }
        found
    }

    /// The one shard without which all others of a row fit each other, if there is exactly one.
    pub fn suspect(&self, row: u32) -> Option<u8> {
        let fits_without = |shard: &usize| {
            let rules = self.rules(Some(*shard));
            !rules.is_empty() && rules.iter().all(|rule| rule.holds(&self.shards, row))
        };
        let mut alone = (0..self.shards.len()).filter(fits_without);
        let shard = alone.next()?;
        alone.next().is_none().then(|| self.shards[shard].part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::SECTOR;
    use cluster_proto::crc::crc32c;
    use cluster_proto::planes::{planes, remainder};

    const ROWS: usize = 9;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(next).collect()
    }

    /// All shards of an object with a hole in rows 5 and 6, whose last row only the first shard has.
    fn object(code: &Code) -> Vec<Vec<u8>> {
        let mut shards: Vec<_> = (0..code.data()).map(|part| noise(part as u64 + 5, ROWS * SECTOR)).collect();
        shards.iter_mut().for_each(|shard| shard[5 * SECTOR..7 * SECTOR].fill(0));
        shards[1..].iter_mut().for_each(|shard| shard[8 * SECTOR..].fill(0));
        let mut parity = vec![vec![0; ROWS * SECTOR]; code.parity()];
        let inputs: Vec<&[u8]> = shards.iter().map(|shard| &shard[..]).collect();
        let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(|shard| &mut shard[..]).collect();
        code.encode(&inputs, &mut outputs);
        shards.extend(parity);
        shards
    }

    /// What a member says of a shard, sectors of zeroes being holes.
    fn told(code: &Code, part: usize, shard: &[u8]) -> ShardSums {
        let kind = sums_for(code);
        let (mut extents, mut sums): (Vec<SectorRange>, Vec<u32>) = Default::default();
        for (row, sector) in (0..).zip(shard.chunks_exact(SECTOR)) {
            if sector.iter().all(|byte| *byte == 0) {
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.end() == row => last.count += 1,
                _ => extents.push(SectorRange::new(row, 1)),
            }
            match kind {
                Sums::Planes => sums.extend(planes(sector)),
                _ => sums.push(remainder(crc32c(sector))),
            }
        }
        ShardSums { peer: 40 - part, part: part as u8, version: Version(7), extents, kind, sums }
    }

    fn all_told(code: &Code, shards: &[Vec<u8>]) -> Vec<ShardSums> {
        // Members answer in any order.
        shards.iter().enumerate().rev().map(|(part, shard)| told(code, part, shard)).collect()
    }

    fn codes() -> impl Iterator<Item = Code> {
        [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2), (3, 3)].into_iter().map(|(k, m)| Code::new(k, m).unwrap())
    }

    #[test]
    fn what_was_encoded_fits_with_any_shard_away() {
        for code in codes() {
            let mut all = all_told(&code, &object(&code));
            assert_eq!(Comparison::new(&code, &all).unwrap().misfits(), []);
            for _ in 0..all.len() {
                let away = all.pop().unwrap();
                let some = Comparison::new(&code, &all);
                assert_eq!(some.is_some(), code.parity() > 1);
                assert!(some.is_none_or(|some| some.misfits().is_empty()));
                all.insert(0, away);
            }
        }
    }

    #[test]
    fn a_changed_bit_in_any_shard_is_found_in_its_row() {
        for code in codes() {
            let shards = object(&code);
            let parity: PartMask = (code.data()..shards.len()).fold(0, |mask, part| mask | 1 << part);
            for (part, row) in (0..shards.len()).flat_map(|part| (0..ROWS as u32).map(move |row| (part, row))) {
                let mut spoilt = shards.clone();
                spoilt[part][row as usize * SECTOR + 100 * part + 7] ^= 1 << (row % 8);
                let all = all_told(&code, &spoilt);
                let comparison = Comparison::new(&code, &all).unwrap();
                // A wrong data shard fits no parity; a wrong parity shard is alone.
                let parts = if part < code.data() { parity } else { 1 << part };
                assert_eq!(comparison.misfits(), [Misfit { rows: SectorRange::new(row, 1), parts }]);
                assert!(comparison.has_all_data() && comparison.computed() == parity);
                let suspect = (code.parity() > 1).then_some(part as u8);
                assert_eq!(comparison.suspect(row), suspect, "{code:?}");
            }
        }
    }

    #[test]
    fn neighbouring_rows_that_fail_alike_are_one() {
        let code = Code::new(2, 2).unwrap();
        let mut shards = object(&code);
        shards[2][SECTOR..4 * SECTOR].fill(9);
        shards[3][3 * SECTOR..4 * SECTOR].fill(9);
        shards[2][8 * SECTOR..].fill(0);
        let misfits = Comparison::new(&code, &all_told(&code, &shards)).unwrap().misfits();
        let misfit = |start, count, parts| Misfit { rows: SectorRange::new(start, count), parts };
        assert_eq!(misfits, [misfit(1, 2, 4), misfit(3, 1, 12), misfit(8, 1, 4)]);
    }

    #[test]
    fn two_wrong_shards_of_two_parities_are_not_taken_for_another() {
        let code = Code::new(4, 2).unwrap();
        let mut shards = object(&code);
        for part in [1, 3] {
            shards[part][11] ^= 0x55;
        }
        let all = all_told(&code, &shards);
        let comparison = Comparison::new(&code, &all).unwrap();
        assert_eq!(comparison.misfits(), [Misfit { rows: SectorRange::new(0, 1), parts: 0b11_0000 }]);
        assert_eq!(comparison.suspect(0), None);
    }

    #[test]
    fn what_is_of_another_version_or_kind_is_not_compared() {
        let code = Code::new(2, 2).unwrap();
        let all = all_told(&code, &object(&code));
        let mut other = all.clone();
        other[1].version = Version(8);
        assert!(Comparison::new(&code, &other).is_none());
        other = all;
        other[1].kind = Sums::Whole;
        assert!(Comparison::new(&code, &other).is_none());
        assert!(Comparison::new(&code, &other[..1]).is_none() && Comparison::new(&code, &[]).is_none());
    }

    #[test]
    fn too_few_sums_are_zeroes_and_no_panic() {
        let code = Code::new(2, 1).unwrap();
        let mut all = all_told(&code, &object(&code));
        all[0].sums.truncate(3);
        assert!(!Comparison::new(&code, &all).unwrap().misfits().is_empty());
    }
}
