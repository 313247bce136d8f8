//! What is compared and unpacked again is the same file system, whatever was done to it.

#![allow(unsafe_code)] // unshare(2), to mount where nobody else sees it

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, XattrFlags, openat, setxattr};

use super::compare::compare;
use super::*;

/// Numbers that look random and are the same each time: xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'l, T>(&mut self, list: &'l [T]) -> Option<&'l T> {
        if list.is_empty() { None } else { list.get(self.below(list.len() as u64) as usize) }
    }
}

/// All paths below, parents first.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Does something to a tree, as programs in a container do.
fn change(root: &Path, dice: &mut Dice) {
    let there = paths(root);
    let folders: Vec<PathBuf> =
        there.iter().filter(|path| fs::symlink_metadata(path).unwrap().is_dir()).cloned().collect();
    let files: Vec<PathBuf> =
        there.iter().filter(|path| fs::symlink_metadata(path).unwrap().is_file()).cloned().collect();
    let folder = dice.pick(&folders).cloned().unwrap_or_else(|| root.to_owned());
    let names = ["a", "b.conf", "ä ö", "new\nline", &"long".repeat(40), "z"];
    let new = folder.join(names[dice.below(names.len() as u64) as usize]);
    let vacant = fs::symlink_metadata(&new).is_err();
    match dice.below(17) {
        0 | 1 | 13 if vacant => fs::create_dir(&new).unwrap(),
        2 | 3 | 14..=16 if vacant => fs::write(&new, vec![b'x'; dice.below(3000) as usize]).unwrap(),
        4 => {
            if let Some(file) = dice.pick(&files) {
                fs::write(file, format!("changed {}", dice.below(1000))).unwrap();
            }
        }
        5 => {
            if let Some(gone) = dice.pick(&there) {
                let _ = fs::remove_file(gone);
                let _ = fs::remove_dir_all(gone);
            }
        }
        6 if vacant => symlink("../somewhere/else", &new).unwrap(),
        7 if vacant => {
            if let Some(file) = dice.pick(&files) {
                fs::hard_link(file, &new).unwrap();
            }
        }
        8 => {
            if let Some(path) = dice.pick(&there) {
                std::os::unix::fs::lchown(path, Some(dice.below(3_000_000) as u32), Some(7)).unwrap();
            }
        }
        9 => {
            if let Some(path) = dice.pick(&files).or(dice.pick(&folders)) {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700 + dice.below(64) as u32)).unwrap();
            }
        }
        10 => {
            if let Some(path) = dice.pick(&files) {
                let value: Vec<u8> = (0..20).map(|_| dice.below(256) as u8).chain(*b"\n=\0").collect();
                setxattr(path, "user.note", &value, XattrFlags::empty()).unwrap();
            }
        }
        11 if vacant => {
            let kind = [rustix::fs::FileType::Fifo, rustix::fs::FileType::CharacterDevice][dice.below(2) as usize];
            rustix::fs::mknodat(CWD, &new, kind, Mode::from_raw_mode(0o640), rustix::fs::makedev(1, 3)).unwrap();
        }
        12 => {
            // What a removed folder had does not come back with one of its name.
            if let Some(folder) = dice.pick(&folders) {
                fs::remove_dir_all(folder).unwrap();
                fs::create_dir(folder).unwrap();
                fs::write(folder.join("again"), "again").unwrap();
            }
        }
        _ => {}
    }
}

/// All that a layer can say of a tree; files with several names by the first of them.
fn described(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut described = BTreeMap::new();
    for path in paths(root) {
        let name = path.strip_prefix(root).unwrap().to_owned();
        let there = fs::symlink_metadata(&path).unwrap();
        let kind = there.file_type();
        let same = (!there.is_dir()).then(|| first.entry((there.dev(), there.ino())).or_insert(name.clone()).clone());
        let content = match () {
            () if kind.is_file() => format!("{:?}", Digest::of(&fs::read(&path).unwrap())),
            () if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () => there.rdev().to_string(),
        };
        let mut value = [0_u8; 64];
        let note = rustix::fs::lgetxattr(&path, "user.note", &mut value[..]).map(|length| value[..length].to_vec());
        let text = format!(
            "{:o} {}:{} {}.{:09} {content} {same:?} {note:?}",
            there.mode(),
            there.uid(),
            there.gid(),
            there.mtime(),
            there.mtime_nsec()
        );
        described.insert(name, text);
    }
    described
}

fn folder(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// An overlay, mounted on a thread of its own as a container's root is.
fn in_overlay<T: Send>(dir: &Path, lower: &str, upper: &str, work: impl FnOnce(&Path) -> T + Send) -> T {
    let target = dir.join("merged");
    for path in [&target, &dir.join("work")] {
        fs::create_dir_all(path).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off",
        dir.join(lower).display(),
        dir.join(upper).display(),
        dir.join("work").display()
    );
    let alone = || {
        // SAFETY: NEWNS leaves the table of open files alone, so no handle changes its meaning.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", &target, "overlay", flags, Some(options.as_c_str())).unwrap();
        work(&target)
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap())
}

struct Stage {
    dir: tempfile::TempDir,
    /// As the container saw it in the end.
    expected: BTreeMap<PathBuf, String>,
}

/// A tree in `lower`, and what became of it in `upper`.
fn stage(seed: u64) -> Stage {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap(); // a tmpfs is no upper folder everywhere
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for name in ["lower", "upper"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    for _ in 0..60 {
        change(&dir.path().join("lower"), &mut dice);
    }
    let expected = in_overlay(dir.path(), "lower", "upper", |merged| {
        for _ in 0..40 {
            change(merged, &mut dice);
        }
        described(merged)
    });
    Stage { dir, expected }
}

impl Stage {
    fn sources(&self) -> (Source, Source) {
        let lower = self.dir.path().join("lower");
        let left = Source::Folder { path: lower.clone(), read_only: true };
        let right = Source::Overlay { upper: Some(self.dir.path().join("upper")), lower: vec![lower], user: false };
        (left, right)
    }

    fn layer(&self, packing: Packing) -> Vec<u8> {
        let (left, right) = self.sources();
        let mut layer = Vec::new();
        diff(Some(&left), &right, self.dir.path(), packing, None, &mut layer).unwrap();
        layer
    }
}

#[test]
fn a_layer_makes_of_the_one_tree_the_other() {
    for seed in 1..15 {
        let stage = stage(seed);
        let layer = stage.layer(Packing::Plain);
        assert_eq!(stage.layer(Packing::Plain), layer, "seed {seed}: the same bytes each time");

        fs::create_dir(stage.dir.path().join("again")).unwrap();
        let again = stage.dir.path().join("again");
        let applied = apply(layer.as_slice(), &again, Removals::Overlay).unwrap();
        assert!(applied.implied.is_empty(), "seed {seed}: each folder on the way is in the layer");
        let seen = in_overlay(stage.dir.path(), "lower", "again", described);
        assert_eq!(seen, stage.expected, "seed {seed}");

        // The same, onto a whole file system instead of an upper folder.
        let copy = stage.dir.path().join("copy");
        assert!(
            Command::new("cp").arg("-a").arg(stage.dir.path().join("lower")).arg(&copy).status().unwrap().success()
        );
        apply(layer.as_slice(), &copy, Removals::Remove).unwrap();
        let (seen, expected) = (described(&copy), &stage.expected);
        for (path, text) in &seen {
            // A name that the layer does not touch keeps its link; what it touches comes with all its names.
            assert_eq!(Some(text), expected.get(path), "seed {seed}: {}", path.display());
        }
        assert_eq!(seen.len(), expected.len(), "seed {seed}");
    }
}

#[test]
fn the_upper_folder_only_shortens_the_way() {
    for seed in 100..110 {
        let stage = stage(seed);
        let (left, right) = stage.sources();
        let shown = view::open(&[&right, &left], stage.dir.path()).unwrap();
        let upper = folder(&stage.dir.path().join("upper"));
        let with = compare(Some(&shown[1]), &shown[0], Some(&upper)).unwrap();
        let without = compare(Some(&shown[1]), &shown[0], None).unwrap();
        assert_eq!(with, without, "seed {seed}");
    }
}

#[test]
fn without_anything_before_all_is_new() {
    let stage = stage(7);
    let (_, right) = stage.sources();
    let mut layer = Vec::new();
    let made = diff(None, &right, stage.dir.path(), Packing::Zstd, None, &mut layer).unwrap();
    let all = stage.dir.path().join("all");
    fs::create_dir(&all).unwrap();
    let applied = apply(layer.as_slice(), &all, Removals::Remove).unwrap();
    assert_eq!((applied.diff_id, applied.size), (made.diff_id, made.size));
    assert_eq!(described(&all), stage.expected);
}

#[test]
fn gnu_tar_reads_the_same_entries() {
    let mut checked = 0;
    for seed in 20..25 {
        let stage = stage(seed);
        let file = stage.dir.path().join("layer.tar.gz");
        fs::write(&file, stage.layer(Packing::Gzip)).unwrap();
        let unpacked = stage.dir.path().join("gnu");
        fs::create_dir(&unpacked).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--xattrs", "--xattrs-include=user.*", "--numeric-owner", "-xpzf"])
            .arg(&file)
            .arg("-C")
            .arg(&unpacked);
        let out = tar.output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        for (path, text) in described(&unpacked) {
            if path.file_name().unwrap().to_string_lossy().starts_with(".wh.") {
                continue;
            }
            assert_eq!(Some(&text), stage.expected.get(&path), "seed {seed}: {}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked} entries");
}

#[test]
fn times_later_than_the_build_are_bounded() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(dir.path().join("old"), "").unwrap();
    fs::write(dir.path().join("new"), "").unwrap();
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    fs::File::open(dir.path().join("old")).unwrap().set_modified(at).unwrap();
    let right = Source::Folder { path: dir.path().to_owned(), read_only: false };
    let mut layer = Vec::new();
    diff(None, &right, dir.path(), Packing::Plain, Some(2000), &mut layer).unwrap();
    let mut archive = Archive::new(layer.as_slice());
    let mut times = Vec::new();
    while let Some(entry) = archive.next().unwrap() {
        times.push((entry.path.display().to_string(), entry.time));
    }
    assert_eq!(times, [("new".to_owned(), (2000, 0)), ("old".to_owned(), (1000, 0))]);
}

#[test]
fn what_an_archive_could_not_tell_from_a_removal_is_refused() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let right = Source::Folder { path: dir.path().to_owned(), read_only: false };
    let refused = || diff(None, &right, dir.path(), Packing::Plain, None, io::sink()).unwrap_err().to_string();
    fs::write(dir.path().join(".wh.x"), "").unwrap();
    assert!(refused().contains("its name is that of a removal"), "{}", refused());
    fs::remove_file(dir.path().join(".wh.x")).unwrap();
    rustix::fs::mknodat(CWD, dir.path().join("w"), rustix::fs::FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
    assert!(refused().contains("a removal in disguise"), "{}", refused());
    chown(dir.path(), Some(1), Some(1)).unwrap();
}
