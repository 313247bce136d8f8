//! Huge pages and RDMA devices.
//!
//! Source: kernel cgroup-v1/hugetlb.rst, cgroup-v1/rdma.rst, cgroup-v2.rst, "HugeTLB" and "RDMA".

use std::fs;
use std::path::Path;

use tare_proto::io::containerd::cgroups::{v1, v2};

use super::metrics::number;

/// Version 1, for each size of pages.
pub fn huge_pages(folder: &Path) -> Vec<v1::HugetlbStat> {
    let of = |size: String| v1::HugetlbStat {
        usage: number(folder, &format!("hugetlb.{size}.usage_in_bytes")),
        max: number(folder, &format!("hugetlb.{size}.max_usage_in_bytes")),
        failcnt: number(folder, &format!("hugetlb.{size}.failcnt")),
        pagesize: size,
    };
    sizes(folder, ".usage_in_bytes").into_iter().map(of).collect()
}

/// Version 2, for each size of pages.
pub fn huge_pages_unified(folder: &Path) -> Vec<v2::HugeTlbStat> {
    let of = |size: String| v2::HugeTlbStat {
        current: number(folder, &format!("hugetlb.{size}.current")),
        max: number(folder, &format!("hugetlb.{size}.max")),
        pagesize: size,
    };
    sizes(folder, ".current").into_iter().map(of).collect()
}

/// The sizes that a cgroup has files for: `hugetlb.2MB.current`, but not `hugetlb.2MB.rsvd.current`.
fn sizes(folder: &Path, ending: &str) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut sizes: Vec<String> = files.filter_map(|entry| size(entry.file_name().into_string().ok()?)).collect();
    sizes.sort();
    sizes
}

pub fn rdma(folder: &Path) -> Option<v1::RdmaStat> {
    let of = |file| {
        let entry = |Rdma { device, hca_handles, hca_objects }| v1::RdmaEntry { device, hca_handles, hca_objects };
        rdma_lines(folder, file).map(|lines| lines.into_iter().map(entry).collect())
    };
    Some(v1::RdmaStat { current: of("rdma.current")?, limit: of("rdma.max")? })
}

pub fn rdma_unified(folder: &Path) -> Option<v2::RdmaStat> {
    let of = |file| {
        let entry = |Rdma { device, hca_handles, hca_objects }| v2::RdmaEntry { device, hca_handles, hca_objects };
        rdma_lines(folder, file).map(|lines| lines.into_iter().map(entry).collect())
    };
    Some(v2::RdmaStat { current: of("rdma.current")?, limit: of("rdma.max")? })
}

struct Rdma {
    device: String,
    hca_handles: u32,
    hca_objects: u32,
}

/// `mlx4_0 hca_handle=2 hca_object=max`, by device; none where the controller is not there.
fn rdma_lines(folder: &Path, file: &str) -> Option<Vec<Rdma>> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    let entry = |line: &str| {
        let (device, counts) = line.split_once(' ')?;
        let count = |key: &str| match counts.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')) {
            Some("max") => u32::MAX,
            value => value.and_then(|value| value.parse().ok()).unwrap_or(0),
        };
        Some(Rdma { device: device.to_owned(), hca_handles: count("hca_handle"), hca_objects: count("hca_object") })
    };
    Some(text.lines().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        assert_eq!((huge_pages(dir.path()), rdma(dir.path())), (vec![], None));
        for (file, text) in [
            ("hugetlb.2MB.usage_in_bytes", "4194304\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "8388608\n"),
            ("hugetlb.2MB.failcnt", "3\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "1\n"),
            ("hugetlb.1GB.current", "0\n"),
            ("hugetlb.1GB.max", "max\n"),
            ("hugetlb.1GB.rsvd.current", "1\n"),
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=0\n"),
            ("rdma.max", "mlx4_0 hca_handle=4 hca_object=max\n"),
        ] {
            write(file, text);
        }
        let pages = v1::HugetlbStat { usage: 4 << 20, max: 8 << 20, failcnt: 3, pagesize: "2MB".into() };
        assert_eq!(huge_pages(dir.path()), [pages]);
        let pages = v2::HugeTlbStat { current: 0, max: u64::MAX, pagesize: "1GB".into() };
        assert_eq!(huge_pages_unified(dir.path()), [pages]);
        let devices = rdma(dir.path()).unwrap();
        assert_eq!(devices.current.len(), 2);
        let limit = v1::RdmaEntry { device: "mlx4_0".into(), hca_handles: 4, hca_objects: u32::MAX };
        assert_eq!(devices.limit, [limit]);
        assert_eq!(rdma_unified(dir.path()).unwrap().current[1].hca_handles, 3);
    }
}
