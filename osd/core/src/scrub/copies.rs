//! Whether the copies of an object are the same. Each has checksums that fit it; which of them is right only people can tell. docs/scrub.md gives
//! the reasons.

use cluster_proto::layout::SectorRange;

use super::parity::named;
use crate::ec::ShardSums;
use crate::op::{Kind, OpId};
use crate::osd::Osd;

/// In what copies differ.
#[derive(PartialEq, Eq, Debug)]
struct Difference {
    /// Ascending, not touching.
    sectors: Vec<SectorRange>,
    /// The peer whose copy differs from all others, if those are at least two, and alike.
    odd: Option<usize>,
}

/// Compares copies of one version. None if they are the same, or are not all of one version.
fn difference(told: &[ShardSums]) -> Option<Difference> {
    let first = told.first()?;
    if !told.iter().all(|copy| (copy.version, copy.kind) == (first.version, first.kind)) {
        return None;
    }
    let end = told.iter().flat_map(|copy| &copy.extents).map(|extent| extent.end()).max().unwrap_or(0);
    let copies: Vec<Vec<u32>> = told.iter().map(|copy| by_sector(copy, end)).collect();
    let mut sectors: Vec<SectorRange> = Vec::new();
    for sector in
        (0..end).filter(|sector| copies.iter().any(|copy| copy[*sector as usize] != copies[0][*sector as usize]))
    {
        match sectors.last_mut() {
            Some(last) if last.end() == sector => last.count += 1,
            _ => sectors.push(SectorRange::new(sector, 1)),
        }
    }
    let others_are_alike = |odd: &usize| {
        let mut others = copies.iter().enumerate().filter(|(copy, _)| copy != odd).map(|(_, copy)| copy);
        let first = others.next();
        others.all(|other| Some(other) == first)
    };
    let odd = (0..copies.len()).filter(|_| copies.len() > 2).find(others_are_alike).map(|copy| told[copy].peer);
    (!sectors.is_empty()).then_some(Difference { sectors, odd })
}

/// What a member told, by sector; what it does not have is zeroes, whose sum is 0.
fn by_sector(copy: &ShardSums, end: u32) -> Vec<u32> {
    let mut sums = vec![0; end as usize];
    let sectors = copy.extents.iter().flat_map(|extent| extent.start..extent.end());
    sectors.zip(&copy.sums).for_each(|(sector, sum)| sums[sector as usize] = *sum);
    sums
}

impl Osd {
    /// Counts and tells what differs.
    pub(super) fn scrub_compare_copies(&mut self, id: OpId, told: &[ShardSums]) {
        let Some(Difference { sectors, odd }) = difference(told) else { return };
        let Some(op) = self.ops.get_mut(id) else { return };
        let (Some(pg), Kind::Scrub(scrub)) = (self.pgs.get(&op.pg), &mut op.kind) else { return };
        let count = sectors.iter().map(|sectors| u64::from(sectors.count)).sum::<u64>();
        scrub.errors += count;
        scrub.unrepaired += count;
        let osd = |peer: usize| format!("osd {}", pg.peers()[peer].osd);
        let all = told.iter().map(|copy| osd(copy.peer)).collect::<Vec<_>>().join(", ");
        let odd = odd.map(|peer| format!(" (all but that on {} are alike)", osd(peer))).unwrap_or_default();
        let text = format!(
            "object {}: its copies on {all} differ in sectors {}{odd}, which is right is not known: find out by reading, and take the OSD with \
             the wrong one out ('blockyard osd reweight OSD 0')",
            scrub.object,
            named(&sectors)
        );
        self.notice(text);
    }
}

#[cfg(test)]
mod tests {
    use cluster_proto::ids::{Epoch, Version};
    use cluster_proto::shard::Sums;

    use super::*;

    fn copy(peer: usize, extents: &[(u32, u32)], sums: &[u32]) -> ShardSums {
        let extents = extents.iter().map(|(start, count)| SectorRange::new(*start, *count)).collect();
        let version = Version::new(Epoch(1), 5);
        ShardSums { peer, part: peer as u8, version, extents, kind: Sums::Whole, sums: sums.to_vec() }
    }

    #[test]
    fn the_same_content_is_the_same_however_it_lies() {
        let whole = copy(0, &[(0, 4)], &[7, 0, 8, 9]);
        let with_hole = copy(1, &[(0, 1), (2, 2)], &[7, 8, 9]);
        assert_eq!(difference(&[whole.clone(), with_hole.clone(), whole.clone()]), None);
        let newer = ShardSums { version: Version::new(Epoch(1), 6), ..copy(2, &[(0, 1)], &[1]) };
        assert_eq!(difference(&[whole, with_hole, newer]), None, "of another version");
        assert_eq!(difference(&[]), None);
    }

    #[test]
    fn what_differs_is_told_and_who_is_alone() {
        let right = |peer| copy(peer, &[(0, 4)], &[7, 1, 8, 9]);
        let wrong = copy(2, &[(0, 3), (9, 1)], &[7, 2, 3, 4]);
        let sectors = vec![SectorRange::new(1, 3), SectorRange::new(9, 1)];
        let found = difference(&[right(0), right(1), wrong.clone()]);
        assert_eq!(found, Some(Difference { sectors: sectors.clone(), odd: Some(2) }));
        assert_eq!(difference(&[wrong.clone(), right(1)]), Some(Difference { sectors, odd: None }), "one of two");
        let third = copy(3, &[(0, 1)], &[6]);
        assert_eq!(difference(&[right(0), wrong, third]).and_then(|found| found.odd), None);
    }

    #[test]
    fn too_few_sums_are_zeroes_and_no_panic() {
        let short = copy(1, &[(0, 4)], &[7]);
        assert_eq!(difference(&[copy(0, &[(0, 1)], &[7]), short]), None);
    }
}
