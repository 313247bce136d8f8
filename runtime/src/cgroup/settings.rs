//! From `linux.resources` to values for files.
//!
//! All that can be refused is refused here, by the name of its field, before a directory is made: what makes no sense, what
//! this version of cgroups has no file for, and controllers that this host lacks.

use std::borrow::Cow;
use std::path::Path;

use super::devices::Devices;
use super::{CgroupPath, Error, v1, v2};
use crate::spec::{Memory, Resources};

/// Values for files, and the devices.
#[derive(Debug, Default)]
pub struct Settings {
    pub(super) writes: Vec<Setting>,
    /// Absent in an update, which leaves them as they are.
    pub devices: Option<Devices>,
    /// Whether the container can look at its cgroups. Then it gets one in each hierarchy: programs (the Java virtual
    /// machine is one) take the lack of a directory for the lack of all limits.
    pub visible: bool,
    /// A new memory limit below what is in use is refused instead of having the kernel kill.
    pub(super) check_memory: Option<u64>,
}

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub controller: &'static str,
    pub file: Cow<'static, str>,
    pub value: String,
    /// Below `linux.resources`.
    pub field: Cow<'static, str>,
}

impl Setting {
    /// Whether a kernel that lacks the file is fine: it has nothing to limit there.
    pub fn optional(&self) -> bool {
        self.file.contains(".rsvd.")
    }

    /// Whether it can be set while a process that is not the container's is in its cgroup: it would count against a limit
    /// on processes.
    pub(super) fn fits(&self, holder: Option<i32>) -> bool {
        holder.is_none() || self.controller != "pids"
    }
}

impl Settings {
    /// What a new container gets. Devices that are not named are closed to it.
    pub fn for_create(path: &CgroupPath, resources: &Resources) -> Result<Settings, Error> {
        let mut settings = Settings::for_update(path, resources)?;
        settings.devices = Some(Devices::read(&resources.devices)?);
        if let (CgroupPath::V1 { .. }, Some(devices)) = (path, &settings.devices) {
            devices.as_v1()?;
        }
        Ok(settings)
    }

    /// What a running one gets.
    pub fn for_update(path: &CgroupPath, resources: &Resources) -> Result<Settings, Error> {
        let mut settings = Settings::default();
        if let Some(memory) = &resources.memory {
            check_memory(memory)?;
            if memory.check_before_update == Some(true) {
                settings.check_memory =
                    memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
            }
        }
        check_cpus(resources)?;
        match path {
            CgroupPath::V1 { hierarchies } => {
                v1::limits(resources, &mut settings).and_then(|()| v1::check(hierarchies, &settings.writes))
            }
            CgroupPath::V2 { root, .. } => {
                v2::limits(resources, &mut settings).and_then(|()| v2::check(root, &settings.writes))
            }
        }?;
        Ok(settings)
    }

    /// Limits of huge pages: in use, and reserved where the kernel counts that too (Linux 5.7).
    pub(super) fn set_huge_pages(&mut self, resources: &Resources, suffix: &str) -> Result<(), Error> {
        for (index, page) in resources.hugepage_limits.iter().enumerate() {
            check_page_size(index, &page.page_size)?;
            for kind in ["", ".rsvd"] {
                let file = format!("hugetlb.{}{kind}.{suffix}", page.page_size);
                self.set("hugetlb", file, page.limit, format!("hugepageLimits[{index}].limit"));
            }
        }
        Ok(())
    }

    pub(super) fn set(
        &mut self,
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
        field: impl Into<Cow<'static, str>>,
    ) {
        let (file, value, field) = (file.into(), value.to_string(), field.into());
        self.writes.push(Setting { controller, file, value, field });
    }
}

/// An error that names a field of `linux.resources`.
pub(super) fn refused(field: &str, why: impl Into<String>) -> Error {
    Error::refused(format!("linux.resources.{field}"), why)
}

fn check_memory(memory: &Memory) -> Result<(), Error> {
    for (field, value) in [
        ("memory.limit", memory.limit),
        ("memory.reservation", memory.reservation),
        ("memory.swap", memory.swap),
        ("memory.kernel", memory.kernel),
        ("memory.kernelTCP", memory.kernel_tcp),
    ] {
        if value.is_some_and(|value| value < -1) {
            return Err(refused(field, "is neither a number of bytes nor -1"));
        }
    }
    if memory.use_hierarchy == Some(false) {
        return Err(refused("memory.useHierarchy", "false is not supported: the kernel always counts what is below"));
    }
    // swap is memory and swap together: below the limit it could never be reached.
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    if swap > 0 && limit > 0 && swap < limit {
        return Err(refused("memory.swap", format!("{swap} is below memory.limit ({limit}), which it includes")));
    }
    Ok(())
}

/// Lists of processors and memory nodes: the kernel expands them, so a range of billions is refused by us.
fn check_cpus(resources: &Resources) -> Result<(), Error> {
    const HIGHEST: u32 = 65_535;
    let Some(cpu) = &resources.cpu else { return Ok(()) };
    for (field, list) in [("cpu.cpus", &cpu.cpus), ("cpu.mems", &cpu.mems)] {
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number <= HIGHEST);
        let fine = |part: &str| match part.split_once('-') {
            Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
            None => number(part).is_some(),
        };
        if !list.is_empty() && !list.split(',').all(fine) {
            return Err(refused(field, format!("{list:?} is not a list like 0-3,7")));
        }
    }
    Ok(())
}

/// `blkio`'s weights go from 10 to 1000.
pub(super) fn check_weight(field: &str, weight: u16) -> Result<(), Error> {
    if (10..=1000).contains(&weight) { Ok(()) } else { Err(refused(field, format!("{weight} is not from 10 to 1000"))) }
}

/// A page size as cgroup files spell it (`2MB`, `1GB`), of which this kernel has pages.
fn check_page_size(index: usize, size: &str) -> Result<(), Error> {
    let field = format!("hugepageLimits[{index}].pageSize");
    let digits = size.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let kib = match &size[digits.len()..] {
        "KB" => Some(1),
        "MB" => Some(1024),
        "GB" => Some(1024 * 1024),
        _ => None,
    };
    let Some(kib) = kib.and_then(|unit: u64| digits.parse::<u64>().ok()?.checked_mul(unit)) else {
        return Err(refused(&field, format!("{size:?} is not a size like 2MB")));
    };
    match Path::new(&format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB")).is_dir() {
        true => Ok(()),
        false => Err(refused(&field, format!("this kernel has no pages of {size}"))),
    }
}

/// The value of a limit that has -1 for none, in the kernel's word of the version.
pub(super) fn bytes(value: i64, unlimited: &str) -> String {
    if value < 0 { unlimited.into() } else { value.to_string() }
}
