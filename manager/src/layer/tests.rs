//! Archives as nobody should make them, and as everybody does.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use super::*;

type Entry<'a> = (tar::EntryType, &'a str, &'a str);

/// An archive with these entries, written without the checks that a good writer makes.
fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        let link = matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link);
        if link {
            header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        let data = if *kind == tar::EntryType::Regular { content.as_bytes() } else { &[] };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpack(entries: &[Entry<'_>]) -> (tempfile::TempDir, Result<Applied>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("canary"), "host").unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let applied = apply(archive(entries).as_slice(), &root, Removals::Overlay);
    assert_eq!(std::fs::read(dir.path().join("canary")).unwrap(), b"host", "{entries:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "{entries:?} made something beside the root");
    (dir, applied)
}

use tar::EntryType::{Directory, Link, Regular, Symlink};

#[test]
fn no_entry_reaches_out_of_the_layer() {
    for (entries, expected) in [
        (&[(Regular, "../canary", "evil")][..], "leads out of the layer"),
        (&[(Regular, "a/../../canary", "evil")], "leads out of the layer"),
        (&[(Link, "x", "../canary")], "leads out of the layer"),
        (&[(Symlink, ".", "/")], "the root must be a folder"),
        (&[(Regular, ".wh..", "")], "removes no file"),
        (&[(Regular, ".wh...", "")], "removes no file"),
    ] {
        let (_dir, applied) = unpack(entries);
        let error = applied.unwrap_err().to_string();
        assert!(error.contains(expected), "{entries:?}: {error}");
    }
}

#[test]
fn links_lead_back_into_the_layer() {
    let (dir, applied) = unpack(&[
        (Symlink, "up", "../.."),
        (Regular, "up/canary", "inside"),
        (Symlink, "abs", "/"),
        (Regular, "abs/two", "2"),
    ]);
    applied.unwrap();
    assert_eq!(std::fs::read(dir.path().join("root/canary")).unwrap(), b"inside");
    assert_eq!(std::fs::read(dir.path().join("root/two")).unwrap(), b"2");
}

#[test]
fn removals_are_written_as_overlayfs_reads_them() {
    let (dir, applied) = unpack(&[(Directory, "d", ""), (Regular, "d/.wh.gone", ""), (Regular, "d/kept", "x")]);
    applied.unwrap();
    let gone = std::fs::symlink_metadata(dir.path().join("root/d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(std::fs::read(dir.path().join("root/d/kept")).unwrap(), b"x");
}

#[test]
fn an_archive_that_is_cut_short_is_an_error_and_compression_is_recognised() {
    let whole = archive(&[(Regular, "file", "content")]);
    let compressed = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &whole).unwrap();
        gzip.finish().unwrap()
    };
    let run = |bytes: &[u8]| apply(bytes, tempfile::tempdir().unwrap().path(), Removals::Overlay);
    assert_eq!(run(&whole).unwrap(), run(&compressed).unwrap());
    assert_eq!(run(&whole).unwrap().diff_id, Digest::of(&whole));
    for cut in [20, compressed.len() / 2, compressed.len() - 1] {
        assert!(run(&compressed[..cut]).is_err(), "cut at {cut}");
    }
    assert!(run(&whole[..600]).is_err());
}

/// An entry with extensions in pax form, each as long as it says.
fn with_extensions(extensions: &[(&str, &[u8])], kind: tar::EntryType, path: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(extensions.iter().copied()).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path).unwrap();
    header.set_mode(0o4755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).unwrap();
    builder.into_inner().unwrap()
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0_u8; 64];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

/// A version 2 capability: cap_net_raw, permitted and effective. Source: capabilities(7), linux/capability.h.
const NET_RAW: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_file_keeps_owner_mode_time_and_the_attributes_that_an_image_may_set() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let extensions: &[(&str, &[u8])] = &[
        ("mtime", b"1700000000.123456789"),
        ("SCHILY.xattr.security.capability", NET_RAW),
        ("SCHILY.xattr.user.note", b"hello"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
    ];
    apply(with_extensions(extensions, Regular, "ping", b"x").as_slice(), dir.path(), Removals::Overlay).unwrap();
    let file = dir.path().join("ping");
    let there = std::fs::metadata(&file).unwrap();
    assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (7, 8, 0o4755));
    assert_eq!((there.mtime(), there.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(attribute(&file, "security.capability").as_deref(), Some(NET_RAW));
    assert_eq!(attribute(&file, "user.note").as_deref(), Some(&b"hello"[..]));
    assert_eq!(attribute(&file, "trusted.overlay.opaque"), None);
    assert_eq!(attribute(&file, "user.overlay.opaque"), None);
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused() {
    for (extensions, expected) in [
        (&[("path", &b"a"[..]), ("path", b"b")][..], "it says path twice"),
        (&[("mtime", b"soon")], "its mtime is not a time"),
        (&[("GNU.sparse.major", b"1")], "sparse files in pax form are not supported"),
        (&[("uid", b"4294967295")], "its owner is not a user or group id"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let archive = with_extensions(extensions, Regular, "file", b"x");
        let error = apply(archive.as_slice(), dir.path(), Removals::Overlay).unwrap_err().to_string();
        assert!(error.contains(expected), "{extensions:?}: {error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{extensions:?} made something");
    }
}

#[test]
fn malformed_extensions_are_an_error_and_not_skipped() {
    let mut archive = with_extensions(&[("mtime", b"1")], Regular, "file", b"x");
    let at = archive.windows(5).position(|bytes| bytes == b"mtime").unwrap();
    archive[at - 2] = b'z'; // the length before it
    let dir = tempfile::tempdir().unwrap();
    let error = apply(archive.as_slice(), dir.path(), Removals::Overlay).unwrap_err().to_string();
    assert_eq!(error, "reading the archive: a pax record is malformed: invalid argument");
}

/// A header that claims to be followed by `size` bytes.
fn claims(kind: tar::EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_path("claim").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// CVE-2017-14992, CVE-2025-58183: what a header claims is not what is kept in memory.
#[test]
fn a_description_that_never_ends_is_refused_before_it_fills_memory() {
    for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
        let dir = tempfile::tempdir().unwrap();
        let endless = io::Read::chain(io::Cursor::new(claims(kind, 1 << 60)), io::repeat(b'a'));
        let error = apply(endless, dir.path(), Removals::Overlay).unwrap_err().to_string();
        assert_eq!(error, "reading the archive: an entry's header is too long: invalid argument", "{kind:?}");
    }
}

#[test]
fn a_layer_past_the_limit_is_refused_before_its_file_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let endless = io::Read::chain(io::Cursor::new(claims(Regular, LARGEST + 1)), io::repeat(0));
    let error = apply(endless, dir.path(), Removals::Overlay).unwrap_err().to_string();
    assert_eq!(error, "the archive's entry claim: the layer unpacks to more than 64 GiB: invalid argument");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// 1 TiB of nothing in 1536 bytes of archive.
#[test]
fn a_sparse_file_is_as_large_as_it_says_and_no_larger_than_the_limit() {
    let sparse = |size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_path("claim").unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(512);
        let gnu = header.as_gnu_mut().unwrap();
        // In base 256, as numbers past 8 GiB must be. Source: tar(5), "Numeric Values".
        let number = |field: &mut [u8; 12], number: u64| {
            field[0] = 0x80;
            field[4..].copy_from_slice(&number.to_be_bytes());
        };
        number(&mut gnu.sparse[0].offset, size - 512);
        number(&mut gnu.sparse[0].numbytes, 512);
        number(&mut gnu.realsize, size);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[b'x'; 512], &[0; 1024]].concat()
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    apply(sparse(8 << 20).as_slice(), dir.path(), Removals::Overlay).unwrap();
    let there = std::fs::metadata(dir.path().join("claim")).unwrap();
    assert_eq!(there.len(), 8 << 20);
    assert!(there.blocks() * 512 < 1 << 20, "a hole stays a hole: {} blocks", there.blocks());
    let error = apply(sparse(1 << 40).as_slice(), dir.path(), Removals::Overlay).unwrap_err().to_string();
    assert!(error.contains("more than 64 GiB"), "{error}");
}

#[test]
fn a_comment_for_all_entries_touches_no_file_of_its_name() {
    let (dir, applied) =
        unpack(&[(Regular, "pax_global_header", "kept"), (tar::EntryType::XGlobalHeader, "pax_global_header", "")]);
    applied.unwrap();
    assert_eq!(std::fs::read(dir.path().join("root/pax_global_header")).unwrap(), b"kept");
}

#[test]
fn a_folder_that_comes_after_its_files_has_its_own_looks() {
    let (_dir, applied) = unpack(&[(Regular, "a/b/file", ""), (Directory, "a", "")]);
    assert_eq!(applied.unwrap().implied, [PathBuf::from("a/b")]);
}

#[test]
fn an_implied_folder_looks_as_below_and_no_link_there_is_followed() {
    let (dir, applied) = unpack(&[(Regular, "a/b/file", ""), (Regular, "link/file", "")]);
    let lower = dir.path().join("lower");
    std::fs::create_dir_all(lower.join("a/b")).unwrap();
    std::os::unix::fs::chown(lower.join("a/b"), Some(5), Some(6)).unwrap();
    std::os::unix::fs::symlink("/var/tmp", lower.join("link")).unwrap();
    settle(&dir.path().join("root"), &applied.unwrap(), &[lower]).unwrap();
    let looks = |path: &str| std::fs::metadata(dir.path().join("root").join(path)).unwrap();
    assert_eq!((looks("a/b").uid(), looks("a/b").gid()), (5, 6));
    assert_eq!(looks("link").mode() & 0o7777, 0o755);
}

#[test]
fn a_folder_that_goes_takes_the_way_into_it_along() {
    let (dir, applied) = unpack(&[
        (Regular, "d/one", "1"),
        (Regular, ".wh.d", ""),
        (Directory, "d", ""),
        (Regular, "d/two", "2"),
        (Symlink, "d", "/e"),
        (Directory, "e", ""),
        (Regular, "d/three", "3"),
    ]);
    applied.unwrap();
    assert_eq!(std::fs::read(dir.path().join("root/e/three")).unwrap(), b"3");
    assert!(!dir.path().join("root/e/two").exists());
}

#[test]
fn a_folder_that_was_removed_and_made_again_is_opaque() {
    let (dir, applied) = unpack(&[(Regular, ".wh.d", ""), (Directory, "d", ""), (Regular, "o/.wh..wh..opq", "")]);
    applied.unwrap();
    for path in ["root/d", "root/o"] {
        assert_eq!(attribute(&dir.path().join(path), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]), "{path}");
    }
}

#[test]
fn in_a_whole_file_system_removals_remove_and_an_opaque_folder_keeps_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("d/old")).unwrap();
    std::fs::create_dir_all(dir.path().join("d/mixed")).unwrap();
    for old in ["gone", "d/old/file", "d/mixed/old", "d/one"] {
        std::fs::write(dir.path().join(old), "old").unwrap();
    }
    let layer = archive(&[
        (Directory, "d", ""),
        (Regular, "d/mixed/new", "new"),
        (Regular, "d/one", "new"),
        (Regular, "d/.wh..wh..opq", ""),
        (Regular, ".wh.gone", ""),
    ]);
    apply(layer.as_slice(), dir.path(), Removals::Remove).unwrap();
    let there = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).is_ok();
    assert!(!there("gone") && !there("d/old") && !there("d/mixed/old"));
    assert_eq!(std::fs::read(dir.path().join("d/mixed/new")).unwrap(), b"new");
    assert_eq!(std::fs::read(dir.path().join("d/one")).unwrap(), b"new");
}

#[test]
fn devices_and_fifos_are_made_and_a_removal_in_disguise_is_not() {
    let device = |kind: tar::EntryType, major: u32, minor: u32| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path("node").unwrap();
        header.set_mode(0o666);
        header.set_uid(3);
        header.set_gid(4);
        header.set_mtime(9);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let archive = [header.as_bytes().as_slice(), &[0; 1024]].concat();
        let applied = apply(archive.as_slice(), dir.path(), Removals::Overlay);
        (applied.map(|_| std::fs::symlink_metadata(dir.path().join("node")).unwrap()), dir)
    };
    let (null, _dir) = device(tar::EntryType::Char, 1, 3);
    let null = null.unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777, null.uid(), null.gid(), null.mtime()), (0x103, 0o666, 3, 4, 9));
    assert!(device(tar::EntryType::Block, 7, 0).0.unwrap().file_type().is_block_device());
    assert!(device(tar::EntryType::Fifo, 0, 0).0.unwrap().file_type().is_fifo());
    let error = device(tar::EntryType::Char, 0, 0).0.unwrap_err().to_string();
    assert!(error.contains("a removal in disguise"), "{error}");
}

/// CVE-2021-20291: a stream that ends early ends the unpacking.
#[test]
fn a_compressed_layer_cut_anywhere_is_an_error() {
    let noise: String = (0..3_000_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    let whole = archive(&[(Regular, "noise", noise.as_str())]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, &whole).unwrap();
    for packed in [gzip.finish().unwrap(), zstd::encode_all(whole.as_slice(), 1).unwrap()] {
        for cut in (1..packed.len()).step_by(512) {
            let dir = tempfile::tempdir().unwrap();
            assert!(apply(&packed[..cut], dir.path(), Removals::Overlay).is_err(), "cut at {cut} of {}", packed.len());
        }
    }
}
