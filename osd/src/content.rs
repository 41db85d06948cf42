//! What lies on a file or device before it becomes a store, so that nobody's data is overwritten by mistake.

use std::io::{self, Read};

/// How much of the beginning is looked at. Bytes.
const LOOK_BYTES: usize = 1 << 20;

/// A mark that tells what a device holds: byte offset, bytes, name.
type Mark = (usize, &'static [u8], &'static str);

/// Marks, the more telling ones first.
const MARKS: &[Mark] = &[
    (8, b"BLKYARD1", "a Blockyard store"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "an encrypted (LUKS) volume"),
    (0, b"XFSB", "an XFS file system"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (65600, b"_BHRfS_M", "a Btrfs file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (3, b"NTFS    ", "an NTFS file system"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (510, b"\x55\xaa", "a partition table or boot sector"),
];

/// What the content that begins with these bytes is; `None` if there is nothing but zeroes.
fn recognise(head: &[u8]) -> Option<&'static str> {
    let named = MARKS.iter().find(|(at, mark, _)| head.get(*at..*at + mark.len()) == Some(*mark));
    named.map(|(_, _, name)| *name).or_else(|| head.iter().any(|&b| b != 0).then_some("data"))
}

/// Looks at the beginning of a device.
pub(crate) fn find_content(device: &mut impl Read) -> io::Result<Option<&'static str>> {
    let mut head = Vec::new();
    device.take(LOOK_BYTES as u64).read_to_end(&mut head)?;
    Ok(recognise(&head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_zeroes_is_something() {
        let found = |bytes: &[u8]| find_content(&mut &bytes[..]).expect("memory can be read");
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[0; 100_000]), None);
        let mut bytes = vec![0; 100_000];
        bytes[99_999] = 1;
        assert_eq!(found(&bytes), Some("data"));
        for (at, mark, name) in MARKS {
            let mut bytes = vec![0; 100_000];
            bytes[*at..*at + mark.len()].copy_from_slice(mark);
            assert_eq!(found(&bytes), Some(*name));
            assert_eq!(found(&bytes[..*at + mark.len() - 1]), Some("data"), "a cut mark");
        }
    }
}
