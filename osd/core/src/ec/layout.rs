//! Where the sectors of an erasure-coded object lie: units of [`STRIPE_UNIT`] bytes go to the data shards in turn.
//!
//! A *row* is the sectors of all shards, parity included, that lie at the same place in their shard: one code word.

use cluster_proto::SECTOR;
use cluster_proto::layout::SectorRange;
use cluster_proto::limits::STRIPE_UNIT;

/// Sectors of a unit.
const UNIT: u32 = (STRIPE_UNIT / SECTOR) as u32;

/// A stretch of an object that lies together in one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    /// Sectors from the beginning of the range.
    pub offset: u32,
    /// The data shard.
    pub part: usize,
    /// Where in it.
    pub sectors: SectorRange,
}

/// The stretches of a range of an object of `data` data shards, ascending.
pub(crate) fn stretches(range: SectorRange, data: usize) -> impl Iterator<Item = Stretch> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end() {
            return None;
        }
        let (unit, inside) = (at / UNIT, at % UNIT);
        let count = (UNIT - inside).min(range.end() - at);
        let start = unit / data as u32 * UNIT + inside;
        let part = unit as usize % data;
        let stretch = Stretch { offset: at - range.start, part, sectors: SectorRange::new(start, count) };
        at += count;
        Some(stretch)
    })
}

/// What a range touches of each data shard; the stretches of a shard follow each other without gaps.
pub(crate) fn touched(range: SectorRange, data: usize) -> Vec<Option<SectorRange>> {
    let mut touched: Vec<Option<SectorRange>> = vec![None; data];
    for stretch in stretches(range, data) {
        let of_part = &mut touched[stretch.part];
        *of_part = Some(match *of_part {
            None => stretch.sectors,
            Some(before) => {
                debug_assert_eq!(before.end(), stretch.sectors.start);
                SectorRange::new(before.start, stretch.sectors.end() - before.start)
            }
        });
    }
    touched
}

/// The rows that a range touches, with those in between.
pub(crate) fn rows(range: SectorRange, data: usize) -> SectorRange {
    let touched = touched(range, data);
    let start = touched.iter().flatten().map(|s| s.start).min().unwrap_or(0);
    let end = touched.iter().flatten().map(|s| s.end()).max().unwrap_or(0);
    SectorRange::new(start, end - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u32, count: u32) -> SectorRange {
        SectorRange::new(start, count)
    }

    #[test]
    fn units_go_round() {
        let found: Vec<_> = stretches(range(2, 12), 2).map(|s| (s.offset, s.part, s.sectors)).collect();
        assert_eq!(found, [(0, 0, range(2, 2)), (2, 1, range(0, 4)), (6, 0, range(4, 4)), (10, 1, range(4, 2))]);
        assert_eq!(touched(range(2, 12), 2), [Some(range(2, 6)), Some(range(0, 6))]);
        assert_eq!(rows(range(2, 12), 2), range(0, 8));
        assert_eq!(rows(range(5, 1), 3), range(1, 1));
        assert_eq!(touched(range(5, 1), 3), [None, Some(range(1, 1)), None]);
    }

    #[test]
    fn every_sector_has_one_place() {
        for data in 1..=5 {
            let mut seen = std::collections::BTreeSet::new();
            let count = 4 * UNIT * data as u32;
            for stretch in stretches(range(0, count), data) {
                stretch.sectors.iter().for_each(|s| assert!(seen.insert((stretch.part, s))));
            }
            assert_eq!(seen.len() as u32, count);
            assert!(seen.iter().all(|(_, s)| *s < 4 * UNIT));
        }
    }
}
