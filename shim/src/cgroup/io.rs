//! What goes to and comes from block devices, and how long processes wait for what they need.
//!
//! Source: kernel cgroup-v1/blkio-controller.rst, cgroup-v2.rst, accounting/psi.rst.

use std::fs;
use std::path::Path;

use tare_proto::io::containerd::cgroups::{v1, v2};

/// Version 1: `8:0 Read 4096`, by operation.
pub fn by_operation(folder: &Path, file: &str) -> Vec<v1::BlkIoEntry> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = device(words.next()?)?;
        let (op, value) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(v1::BlkIoEntry { op, device: name(major, minor), major, minor, value })
    };
    text.lines().filter_map(entry).collect()
}

/// Version 2: `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …`, by device.
pub fn by_device(folder: &Path) -> Vec<v2::IoEntry> {
    let text = fs::read_to_string(folder.join("io.stat")).unwrap_or_default();
    let entry = |line: &str| {
        let (number, counts) = line.split_once(' ')?;
        let (major, minor) = device(number)?;
        let count = |key: &str| {
            let found = counts.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            found.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Some(v2::IoEntry {
            major,
            minor,
            rbytes: count("rbytes"),
            wbytes: count("wbytes"),
            rios: count("rios"),
            wios: count("wios"),
        })
    };
    text.lines().filter_map(entry).collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`; none where the kernel does not count it.
pub fn pressure(folder: &Path, file: &str) -> Option<v2::PsiStats> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    let of = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| line.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| value(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let total = value("total").and_then(|text| text.parse().ok()).unwrap_or(0);
        Some(v2::PsiData { avg10: average("avg10"), avg60: average("avg60"), avg300: average("avg300"), total })
    };
    Some(v2::PsiStats { some: of("some"), full: of("full") })
}

fn device(number: &str) -> Option<(u64, u64)> {
    let (major, minor) = number.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `/dev/sda`; empty if there is no such device any more.
fn name(major: u64, minor: u64) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    name.map_or_else(String::new, |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_s_lines_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("bytes", "4095:9 Read 4096\n4095:9 Write 1\nTotal 4097\n");
        let found = by_operation(dir.path(), "bytes");
        let found: Vec<_> =
            found.iter().map(|entry| (entry.op.as_str(), entry.major, entry.minor, entry.value)).collect();
        assert_eq!(found, [("Read", 4095, 9, 4096), ("Write", 4095, 9, 1)]);
        write("io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:0 \n");
        let found = by_device(dir.path());
        let first = v2::IoEntry { major: 8, minor: 16, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
        assert_eq!(found, [first, v2::IoEntry { major: 8, ..v2::IoEntry::default() }]);
        write("cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n");
        let some = v2::PsiData { avg10: 1.5, avg60: 0.25, avg300: 0.0, total: 77 };
        assert_eq!(pressure(dir.path(), "cpu.pressure"), Some(v2::PsiStats { some: Some(some), full: None }));
        assert_eq!(pressure(dir.path(), "io.pressure"), None);
    }
}
