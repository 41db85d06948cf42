//! What shards of an erasure-coded object say of another one: row by row, from whatever of them can be read.

use std::collections::{BTreeMap, BTreeSet};

use buffer::{Buffer, BufferMut};
use cluster_proto::SECTOR;
use cluster_proto::crc::{ZERO_SECTOR_CRC, crc32c};
use cluster_proto::layout::SectorRange;
use cluster_proto::shard::{ObjectContent, Unreadable};
use erasure::Code;

/// A shard computed from others, as many of each row as the code needs. Sectors that come out as zeroes become holes; rows of which too few are
/// readable are lost.
pub(super) fn rebuilt(code: &Code, gathered: &[(u8, ObjectContent)], part: u8) -> ObjectContent {
    let used: BTreeSet<u32> = gathered.iter().flat_map(|(_, c)| c.extents.iter().flat_map(|e| e.iter())).collect();
    let mut rows: BTreeMap<u32, Row> = BTreeMap::new();
    for (sources, sectors) in by_sources(code, gathered, part, &used) {
        let dense: Vec<(usize, BufferMut)> =
            sources.iter().map(|at| (usize::from(gathered[*at].0), spread(&gathered[*at].1, &sectors))).collect();
        let present: Vec<(usize, &[u8])> = dense.iter().map(|(number, data)| (*number, &data[..])).collect();
        let mut out = BufferMut::for_overwrite(sectors.len() * SECTOR);
        let is_itself = present.first().filter(|(number, _)| *number == usize::from(part));
        if let Some((_, data)) = is_itself {
            out.copy_from_slice(data);
        }
        if is_itself.is_some() || code.reconstruct(&present, &[part.into()], &mut [&mut out[..]]).is_ok() {
            let out = out.freeze();
            let data = (0..).map(|at| out.slice(at * SECTOR..(at + 1) * SECTOR));
            rows.extend(sectors.into_iter().zip(data.map(Row::Data)));
        } else {
            rows.extend(sectors.into_iter().map(|sector| (sector, lost_row(gathered, part, sector))));
        }
    }
    let mut content = ObjectContent { requests: gathered[0].1.requests.clone(), ..ObjectContent::default() };
    let mut kept = BufferMut::for_overwrite(rows.len() * SECTOR);
    let mut len = 0;
    for (sector, row) in rows {
        let crc = match row {
            Row::Data(data) => {
                let crc = crc32c(&data);
                if crc == ZERO_SECTOR_CRC && data.iter().all(|byte| *byte == 0) {
                    continue;
                }
                kept[len..len + SECTOR].copy_from_slice(&data);
                crc
            }
            Row::Lost { crc } => {
                content.unreadable.push(Unreadable { sector, crc });
                kept[len..len + SECTOR].fill(0);
                ZERO_SECTOR_CRC
            }
        };
        len += SECTOR;
        content.crcs.push(crc);
        match content.extents.last_mut() {
            Some(last) if last.end() == sector => last.count += 1,
            _ => content.extents.push(SectorRange::new(sector, 1)),
        }
    }
    content.data = kept.freeze().slice(..len);
    content
}

/// What of shards in other versions is in this version, too: where too few shards of it can be read, those of others make the row if what follows
/// from them for a shard that cannot be read has the checksum which that should have.
pub(super) fn proven(
    code: &Code,
    gathered: &[(u8, ObjectContent)],
    others: &[(u8, ObjectContent)],
    lost: &BTreeSet<u32>,
) -> Vec<(u8, ObjectContent)> {
    let mut rows: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); others.len()];
    for sector in lost {
        for at in proof(code, gathered, others, *sector) {
            rows[at].insert(*sector);
        }
    }
    let contents = || gathered.iter().chain(others).flat_map(|(_, content)| &content.extents);
    let used: BTreeSet<u32> = contents().flat_map(|extent| extent.iter()).collect();
    let proven = others.iter().zip(rows).filter(|(_, rows)| !rows.is_empty());
    let only = |((part, content), rows): (&(u8, ObjectContent), BTreeSet<u32>)| {
        let rest = used.iter().filter(|sector| !rows.contains(sector));
        let unreadable = rest.map(|sector| Unreadable { sector: *sector, crc: Unreadable::UNKNOWN }).collect();
        (*part, ObjectContent { unreadable, ..content.clone() })
    };
    proven.map(only).collect()
}

/// Which of the others complete a row.
fn proof(code: &Code, gathered: &[(u8, ObjectContent)], others: &[(u8, ObjectContent)], sector: u32) -> Vec<usize> {
    /// Of so many others combinations are tried.
    const OTHERS_MAX: usize = 10;
    let row = BTreeSet::from([sector]);
    let mark = |content: &ObjectContent| content.unreadable.iter().find(|u| u.sector == sector).map(|u| u.crc);
    let readable = |shards: &[(u8, ObjectContent)]| -> Vec<(usize, u8, BufferMut)> {
        let shards = shards.iter().enumerate().filter(|(_, (_, content))| mark(content).is_none());
        shards.map(|(at, (part, content))| (at, *part, spread(content, &row))).collect()
    };
    let known: BTreeMap<u8, BufferMut> = readable(gathered).into_iter().map(|(_, part, data)| (part, data)).collect();
    let checks: Vec<(u8, u32)> = gathered
        .iter()
        .filter_map(|(part, content)| Some((*part, mark(content)?)))
        .filter(|(part, crc)| *crc != Unreadable::UNKNOWN && !known.contains_key(part))
        .collect();
    let mut candidates = readable(others);
    candidates.retain(|(_, part, _)| !known.contains_key(part));
    candidates.truncate(OTHERS_MAX);
    let needed = code.data().saturating_sub(known.len());
    for chosen in (1u32..1 << candidates.len()).filter(|set| set.count_ones() as usize == needed) {
        let chosen: Vec<_> =
            (0..candidates.len()).filter(|at| chosen >> at & 1 == 1).map(|at| &candidates[at]).collect();
        let mut shards: BTreeMap<u8, &[u8]> = known.iter().map(|(part, data)| (*part, &data[..])).collect();
        shards.extend(chosen.iter().map(|(_, part, data)| (*part, &data[..])));
        let present: Vec<(usize, &[u8])> = shards.iter().map(|(part, data)| (usize::from(*part), *data)).collect();
        let fits = |(part, crc): &(u8, u32)| {
            let mut out = vec![0; SECTOR];
            let made = code.reconstruct(&present, &[usize::from(*part)], &mut [&mut out[..]]);
            made.is_ok() && crc32c(&out) == *crc
        };
        if !checks.is_empty() && checks.iter().all(fits) {
            return chosen.iter().map(|(at, ..)| *at).collect();
        }
    }
    Vec::new()
}

/// A sector of a shard that is computed.
enum Row {
    Data(Buffer),
    /// Too few shards can be read. The checksum is what one of them says the data had.
    Lost {
        crc: u32,
    },
}

fn lost_row(gathered: &[(u8, ObjectContent)], part: u8, sector: u32) -> Row {
    let own = gathered.iter().filter(|(number, _)| *number == part).flat_map(|(_, content)| &content.unreadable);
    let crcs = own.filter(|u| u.sector == sector).map(|u| u.crc);
    Row::Lost { crc: crcs.max().unwrap_or(Unreadable::UNKNOWN) }
}

/// The sectors by the shards that they are computed from: as many as the code needs, or fewer if there are no more.
fn by_sources(
    code: &Code,
    gathered: &[(u8, ObjectContent)],
    part: u8,
    used: &BTreeSet<u32>,
) -> BTreeMap<Vec<usize>, BTreeSet<u32>> {
    let damaged: Vec<BTreeSet<u32>> =
        gathered.iter().map(|(_, content)| content.unreadable.iter().map(|u| u.sector).collect()).collect();
    let sources = |is_readable: &dyn Fn(usize) -> bool| {
        let mut parts = BTreeSet::new();
        let readable = (0..gathered.len()).filter(|at| is_readable(*at));
        let mut sources: Vec<usize> = readable.filter(|at| parts.insert(gathered[*at].0)).collect();
        // The shard itself, where somebody else has it, counts most.
        sources.sort_by_key(|at| gathered[*at].0 != part);
        sources.truncate(code.data());
        sources
    };
    let is_intact = |sector: &u32| !damaged.iter().any(|damaged| damaged.contains(sector));
    let (intact, rest): (BTreeSet<u32>, BTreeSet<u32>) = used.iter().partition(|sector| is_intact(sector));
    let mut groups = BTreeMap::from([(sources(&|_| true), intact)]);
    for sector in rest {
        groups.entry(sources(&|at| !damaged[at].contains(&sector))).or_default().insert(sector);
    }
    groups
}

/// The chosen sectors of a shard, zeroes where it has none.
fn spread(content: &ObjectContent, chosen: &BTreeSet<u32>) -> BufferMut {
    let mut out = BufferMut::zeroed(chosen.len() * SECTOR);
    let mut of_extents =
        content.extents.iter().flat_map(|e| e.iter()).zip(content.data.chunks_exact(SECTOR)).peekable();
    for (sector, to) in chosen.iter().zip(out.chunks_exact_mut(SECTOR)) {
        while of_extents.next_if(|(at, _)| at < sector).is_some() {}
        if let Some((_, data)) = of_extents.next_if(|(at, _)| at == sector) {
            to.copy_from_slice(data);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_proto::crc::sector_crcs;

    fn content(sectors: &[(u32, u8)]) -> ObjectContent {
        let data: Vec<u8> = sectors.iter().flat_map(|(_, fill)| vec![*fill; SECTOR]).collect();
        ObjectContent {
            extents: sectors.iter().map(|(at, _)| SectorRange::new(*at, 1)).collect(),
            crcs: sector_crcs(&data),
            data: Buffer::copy_of(&data),
            ..ObjectContent::default()
        }
    }

    #[test]
    fn a_shard_with_holes_comes_back() {
        let code = Code::new(2, 1).unwrap();
        let (a, b) = (content(&[(1, 5), (7, 9)]), content(&[(1, 3)]));
        let parity = rebuilt(&code, &[(0, a.clone()), (1, b.clone())], 2);
        assert_eq!(parity.extents, [SectorRange::new(1, 1), SectorRange::new(7, 1)]);
        assert_eq!((parity.data[0], parity.data[SECTOR]), (5 ^ 3, 9));
        let back = rebuilt(&code, &[(0, a), (2, parity)], 1);
        assert_eq!((back.extents.clone(), back.crcs.clone()), (b.extents, b.crcs), "the zero sector is a hole again");
        assert_eq!(back.data[..], b.data[..]);
    }
    /// The same content, of which these sectors could not be read.
    fn damaged(mut content: ObjectContent, sectors: &[u32]) -> ObjectContent {
        let mut data = content.data.to_vec();
        let all: Vec<u32> = content.extents.iter().flat_map(|e| e.iter()).collect();
        for (at, sector) in all.into_iter().enumerate().filter(|(_, sector)| sectors.contains(sector)) {
            data[at * SECTOR..(at + 1) * SECTOR].fill(0);
            content
                .unreadable
                .push(Unreadable { sector, crc: std::mem::replace(&mut content.crcs[at], ZERO_SECTOR_CRC) });
        }
        content.data = Buffer::copy_of(&data);
        content
    }

    #[test]
    fn each_row_is_made_of_what_can_be_read_of_it() {
        let code = Code::new(2, 2).unwrap();
        let data = [content(&[(1, 5), (2, 6), (7, 9)]), content(&[(1, 3), (2, 4), (3, 8), (7, 2)])];
        let whole = [(0, data[0].clone()), (1, data[1].clone())];
        let parity = [2, 3].map(|part| rebuilt(&code, &whole, part));
        // Row 1 is readable on 1, 2, 3; row 2 on 0, 2, 3; row 3 on 1 and 3 (and a hole on 0); row 7 on 3 alone.
        let shards = [
            (0, damaged(data[0].clone(), &[1, 7])),
            (1, damaged(data[1].clone(), &[2, 7])),
            (2, damaged(parity[0].clone(), &[3, 7])),
            (3, parity[1].clone()),
        ];
        let first = rebuilt(&code, &shards, 0);
        assert_eq!(first.extents, [SectorRange::new(1, 2), SectorRange::new(7, 1)]);
        assert_eq!(first.data[..2 * SECTOR], data[0].data[..2 * SECTOR]);
        assert_eq!(first.unreadable, [Unreadable { sector: 7, crc: data[0].crcs[2] }]);
        assert_eq!((&first.data[2 * SECTOR..], first.crcs[2]), (&[0; SECTOR][..], ZERO_SECTOR_CRC));
        // Somebody has the shard itself, and too few others: it is taken as it is.
        assert_eq!(rebuilt(&code, &shards, 3).data[..], parity[1].data[..]);
        // In another's copy of a shard the row is intact.
        let more = [&shards[..], &[(0, damaged(data[0].clone(), &[1]))]].concat();
        let second = rebuilt(&code, &more, 1);
        assert_eq!((second.data[..] == data[1].data[..], second.unreadable.len()), (true, 0));
    }
    #[test]
    fn what_an_older_shard_has_counts_if_a_checksum_proves_it() {
        let code = Code::new(2, 1).unwrap();
        let (a, b) = (content(&[(1, 5), (2, 6), (3, 7)]), content(&[(1, 3), (2, 4), (3, 8)]));
        let parity = rebuilt(&code, &[(0, a.clone()), (1, b.clone())], 2);
        // Shard 0 was away while row 2 changed; 1 cannot read rows 1 and 2 any more, 2 cannot read row 3.
        let old = content(&[(1, 5), (2, 99), (3, 7)]);
        let gathered = vec![(1, damaged(b.clone(), &[1, 2])), (2, damaged(parity.clone(), &[3]))];
        let others = vec![(0, old)];
        let lost: BTreeSet<u32> = rebuilt(&code, &gathered, 0).unreadable.iter().map(|u| u.sector).collect();
        assert_eq!(lost, BTreeSet::from([1, 2, 3]));
        let proven = proven(&code, &gathered, &others, &lost);
        let all = [gathered, proven].concat();
        let first = rebuilt(&code, &all, 0);
        assert_eq!(first.unreadable.iter().map(|u| u.sector).collect::<Vec<_>>(), [2]);
        assert_eq!((&first.data[..SECTOR], &first.data[2 * SECTOR..]), (&a.data[..SECTOR], &a.data[2 * SECTOR..]));
        let second = rebuilt(&code, &all, 1);
        assert_eq!(second.unreadable, [Unreadable { sector: 2, crc: b.crcs[1] }]);
        assert_eq!(second.data[..SECTOR], b.data[..SECTOR]);
        // Nobody knows what it should be.
        let unknown = vec![(1, damaged(b, &[1])), (2, content(&[(1, 1), (2, 2), (3, 15)]))];
        let forgotten: Vec<_> = unknown
            .into_iter()
            .map(|(part, mut content)| {
                content.unreadable.iter_mut().for_each(|u| u.crc = Unreadable::UNKNOWN);
                (part, content)
            })
            .collect();
        assert!(super::proven(&code, &forgotten, &others, &BTreeSet::from([1])).is_empty());
    }
}
