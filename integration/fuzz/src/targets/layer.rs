//! A layer's archive is refused with a sentence or unpacked, and either way touches nothing outside its folder.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tare_manager::layer::{Removals, apply};

/// Where a header has its checksum, and where its magic. Source: tar(5), "POSIX ustar Archives".
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;

pub fn try_input(input: &[u8]) {
    let archive = with_checksums(input);
    for removals in [Removals::Overlay, Removals::Remove] {
        let dir = tempfile::tempdir().expect("a folder for the layer");
        let (root, canary) = (dir.path().join("root"), dir.path().join("canary"));
        fs::create_dir(&root).expect("a folder for the layer's files");
        fs::write(&canary, "host").expect("a file that must stay as it is");
        let before = looks(&canary);
        if let Err(error) = apply(archive.as_slice(), &root, removals) {
            super::assert_sentence(&error.to_string());
        }
        assert_eq!(fs::read(&canary).ok().as_deref(), Some(&b"host"[..]), "the layer wrote outside");
        assert_eq!(looks(&canary), before, "the layer changed the looks of a file outside");
        assert_eq!(fs::read_dir(dir.path()).expect("our own folder").count(), 2, "the layer made something outside");
    }
}

fn looks(path: &Path) -> (u32, u32, u32, u64, i64) {
    let there = fs::symlink_metadata(path).expect("it was there a moment ago");
    (there.mode(), there.uid(), there.gid(), there.nlink(), there.mtime_nsec())
}

/// Makes the checksums of headers right again: else every changed header would be the same error.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut archive = input.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|block| &block[MAGIC] == b"ustar") {
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the fuzzer would only ever see the first refusals.
    #[test]
    fn the_corpus_is_unpacked_to_the_end() {
        for archive in crate::worker::corpus("layer").unwrap() {
            let dir = tempfile::tempdir().unwrap();
            apply(with_checksums(&archive).as_slice(), dir.path(), Removals::Overlay).unwrap();
            assert!(dir.path().join("last").exists());
        }
    }
}
