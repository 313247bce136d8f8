//! `linux.resources.devices`: which device nodes may be made, read and written.
//!
//! A rule is about everything that it names, so the last one that speaks of an access decides it. What none speaks of is
//! forbidden: an empty list is not an open door. A few devices that every container has are allowed at the end.

use super::Error;
use super::settings::refused;
use crate::spec::DeviceRule;

/// Rules in the order in which they are read; later ones win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub devices: Which,
    pub access: Access,
}

/// The devices that a rule is about; no number means all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Which {
    pub kind: Kind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Any,
    Block,
    Char,
}

/// Bits as the kernel has them: `BPF_DEVCG_ACC_*`, linux/bpf.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access(pub u8);

impl Access {
    pub const MKNOD: Access = Access(1);
    pub const READ: Access = Access(2);
    pub const WRITE: Access = Access(4);
    pub const ALL: Access = Access(7);

    pub fn without(self, other: Access) -> Access {
        Access(self.0 & !other.0)
    }
}

const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: Access) -> Rule {
    Rule { allow: true, devices: Which { kind, major, minor }, access }
}

/// What each container may do, as in runc: make any node (it cannot open it), and use those that its `/dev` is made with.
const ALWAYS: [Rule; 11] = [
    allow(Kind::Char, None, None, Access::MKNOD),
    allow(Kind::Block, None, None, Access::MKNOD),
    allow(Kind::Char, Some(1), Some(3), Access::ALL), // null
    allow(Kind::Char, Some(1), Some(5), Access::ALL), // zero
    allow(Kind::Char, Some(1), Some(7), Access::ALL), // full
    allow(Kind::Char, Some(1), Some(8), Access::ALL), // random
    allow(Kind::Char, Some(1), Some(9), Access::ALL), // urandom
    allow(Kind::Char, Some(5), Some(0), Access::ALL), // tty
    allow(Kind::Char, Some(5), Some(1), Access::ALL), // console
    allow(Kind::Char, Some(5), Some(2), Access::ALL), // ptmx
    allow(Kind::Char, Some(136), None, Access::ALL),  // pts
];

impl Devices {
    pub fn read(rules: &[DeviceRule]) -> Result<Devices, Error> {
        let mut read = Vec::with_capacity(rules.len() + ALWAYS.len());
        for (index, rule) in rules.iter().enumerate() {
            let rule = Rule::read(rule, index)?;
            if rule.decides_all() {
                read.clear(); // nothing said before it counts any more
            }
            read.push(rule);
        }
        // A rule that is said again at the end need not be said twice.
        read.retain(|rule| !ALWAYS.contains(rule));
        let mut devices = Devices { rules: read };
        if !devices.allow_all() {
            devices.rules.extend(ALWAYS);
        }
        Ok(devices)
    }

    /// Whether there is nothing to forbid.
    pub fn allow_all(&self) -> bool {
        matches!(self.rules[..], [only] if only.allow && only.decides_all())
    }

    /// Version 1 keeps a default for all devices and a list of exceptions from it. A rule that takes back a part of a
    /// wider exception cannot be said there, and the kernel would pass over it in silence.
    pub fn as_v1(&self) -> Result<Exceptions, Error> {
        let mut state = Exceptions { allowed: false, list: Vec::new() };
        for rule in &self.rules {
            state.apply(rule)?;
        }
        Ok(state)
    }
}

impl Rule {
    fn read(rule: &DeviceRule, index: usize) -> Result<Rule, Error> {
        let field = |name: &str| format!("devices[{index}].{name}");
        let kind = match rule.kind.as_str() {
            "" | "a" => Kind::Any,
            "c" | "u" => Kind::Char,
            "b" => Kind::Block,
            other => return Err(refused(&field("type"), format!("{other:?} is not a, b, c or u"))),
        };
        let number = |name: &str, number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => match u32::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(refused(&field(name), format!("{number} is not the number of a device"))),
            },
        };
        let (major, minor) = (number("major", rule.major)?, number("minor", rule.minor)?);
        let mut access = Access(0);
        for letter in rule.access.chars() {
            access.0 |= match letter {
                'm' => Access::MKNOD.0,
                'r' => Access::READ.0,
                'w' => Access::WRITE.0,
                'a' => 0, // meant nothing to runtimes before us, and is written all the same
                _ => return Err(refused(&field("access"), format!("{:?} has more than r, w and m", rule.access))),
            };
        }
        if kind == Kind::Any {
            if major.is_some() || minor.is_some() {
                return Err(refused(&field("type"), "a rule for all types cannot have numbers"));
            }
            if access.0 != 0 && access != Access::ALL {
                return Err(refused(&field("access"), "a rule for all types is about rwm"));
            }
            access = Access::ALL;
        }
        if access.0 == 0 {
            return Err(refused(&field("access"), "needs some of r, w and m"));
        }
        Ok(Rule { allow: rule.allow, devices: Which { kind, major, minor }, access })
    }

    /// Whether it leaves nothing to say for other rules.
    fn decides_all(&self) -> bool {
        self.devices.kind == Kind::Any
    }
}

impl Which {
    /// Whether every device of `other` is one of these.
    fn covers(&self, other: &Which) -> bool {
        let number = |mine: Option<u32>, theirs: Option<u32>| mine.is_none() || mine == theirs;
        (self.kind == Kind::Any || self.kind == other.kind)
            && number(self.major, other.major)
            && number(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Which) -> bool {
        let number = |mine: Option<u32>, theirs: Option<u32>| mine.is_none() || theirs.is_none() || mine == theirs;
        (self.kind == Kind::Any || other.kind == Kind::Any || self.kind == other.kind)
            && number(self.major, other.major)
            && number(self.minor, other.minor)
    }
}

/// A default, and what is otherwise.
#[derive(Debug, PartialEq, Eq)]
pub struct Exceptions {
    pub allowed: bool,
    pub list: Vec<(Which, Access)>,
}

impl Exceptions {
    fn apply(&mut self, rule: &Rule) -> Result<(), Error> {
        if rule.decides_all() {
            *self = Exceptions { allowed: rule.allow, list: Vec::new() };
            return Ok(());
        }
        if rule.allow != self.allowed {
            match self.list.iter_mut().find(|(which, _)| *which == rule.devices) {
                Some((_, access)) => access.0 |= rule.access.0,
                None => self.list.push((rule.devices, rule.access)),
            }
            return Ok(());
        }
        for (which, access) in &mut self.list {
            if rule.devices.covers(which) {
                *access = access.without(rule.access);
            } else if rule.devices.overlaps(which) && access.0 & rule.access.0 != 0 {
                let (rule, wider) = (line(&rule.devices, rule.access), line(which, *access));
                return Err(refused("devices", format!("cgroup version 1 cannot take {rule:?} out of {wider:?}")));
            }
        }
        self.list.retain(|(_, access)| access.0 != 0);
        Ok(())
    }

    /// The exceptions as version 1 wants them: `c 1:3 rwm`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|(which, access)| line(which, *access))
    }
}

/// Rules as a list of what is allowed and nothing else is.
pub enum DeviceList {
    /// systemd's names of device nodes, and the letters of the access.
    Allowed(Vec<(String, String)>),
    /// The rules allow all, or take a part out of something wider.
    NotSayable,
}

/// Rules in systemd's words. Source: systemd.resource-control(5), "DeviceAllow".
pub fn list_devices(rules: &[DeviceRule]) -> Result<DeviceList, Error> {
    let Some(Exceptions { allowed: false, list }) = Devices::read(rules)?.as_v1().ok() else {
        return Ok(DeviceList::NotSayable);
    };
    let drivers = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let entries = list.iter().filter_map(|(which, access)| Some((node(which, &drivers)?, letters(*access))));
    Ok(DeviceList::Allowed(entries.collect()))
}

/// systemd's name for devices: by number, by the driver that has the major number, or all of a kind. None for a driver that
/// this kernel does not have, which has no devices.
fn node(which: &Which, drivers: &str) -> Option<String> {
    let (kind, heading) = match which.kind {
        Kind::Block => ("block", "Block devices:"),
        _ => ("char", "Character devices:"),
    };
    match (which.major, which.minor) {
        (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
        (None, _) => Some(format!("{kind}-*")),
        (Some(major), None) => {
            let section = drivers.split("\n\n").find(|section| section.starts_with(heading))?;
            let names = section.lines().filter_map(|line| line.trim().split_once(' '));
            let driver = names.into_iter().find(|(number, _)| *number == major.to_string());
            driver.map(|(_, name)| format!("{kind}-{name}"))
        }
    }
}

fn line(which: &Which, access: Access) -> String {
    let kind = match which.kind {
        Kind::Any => 'a',
        Kind::Block => 'b',
        Kind::Char => 'c',
    };
    let number = |number: Option<u32>| number.map_or("*".into(), |number| number.to_string());
    format!("{kind} {}:{} {}", number(which.major), number(which.minor), letters(access))
}

fn letters(access: Access) -> String {
    let letters = [(Access::READ, 'r'), (Access::WRITE, 'w'), (Access::MKNOD, 'm')];
    letters.iter().filter(|(bit, _)| access.0 & bit.0 != 0).map(|(_, letter)| *letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<Devices, Error> {
        Devices::read(&serde_json::from_value::<Vec<DeviceRule>>(json).unwrap())
    }

    #[test]
    fn nothing_named_means_the_usual_devices_and_no_other() {
        let deny_all = read(serde_json::json!([{"allow": false, "access": "rwm"}])).unwrap();
        for devices in [read(serde_json::json!([])).unwrap(), deny_all] {
            let v1 = devices.as_v1().unwrap();
            assert!(!v1.allowed);
            let lines: Vec<_> = v1.lines().collect();
            assert_eq!(lines.len(), 11, "{lines:?}");
            assert!(lines.contains(&"c 1:3 rwm".into()) && lines.contains(&"c 136:* rwm".into()), "{lines:?}");
        }
    }

    #[test]
    fn a_rule_that_the_default_says_too_is_written_once() {
        let devices = read(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
        ]));
        let lines: Vec<_> = devices.unwrap().as_v1().unwrap().lines().collect();
        assert_eq!(lines.len(), 12, "{lines:?}");
        assert_eq!(lines[0], "b 8:0 r");
    }

    #[test]
    fn all_devices_need_no_exceptions() {
        let v1 = read(serde_json::json!([{"allow": true, "type": "a"}])).unwrap().as_v1().unwrap();
        assert_eq!(v1, Exceptions { allowed: true, list: Vec::new() });
    }

    #[test]
    fn a_major_number_is_its_drivers_name() {
        let drivers = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  1 ramdisk\n259 blkext\n";
        let which = |kind, major, minor| Which { kind, major, minor };
        for (which, name) in [
            (which(Kind::Char, Some(136), None), Some("char-pts")),
            (which(Kind::Block, Some(1), None), Some("block-ramdisk")),
            (which(Kind::Char, Some(259), None), None),
            (which(Kind::Char, Some(259), Some(3)), Some("/dev/char/259:3")),
            (which(Kind::Block, None, None), Some("block-*")),
        ] {
            assert_eq!(node(&which, drivers).as_deref(), name, "{which:?}");
        }
    }

    #[test]
    fn version_1_is_not_asked_for_what_it_would_pass_over() {
        let part = |last: serde_json::Value| {
            let wide = serde_json::json!({"allow": true, "type": "b", "major": 8, "access": "rwm"});
            read(serde_json::json!([wide, last])).unwrap().as_v1()
        };
        let error = part(serde_json::json!({"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"}));
        assert_eq!(
            error.unwrap_err().to_string(),
            r#"linux.resources.devices: cgroup version 1 cannot take "b 8:1 w" out of "b 8:* rwm""#
        );
        let whole = part(serde_json::json!({"allow": false, "type": "b", "major": 8, "access": "w"})).unwrap();
        assert!(whole.lines().any(|line| line == "b 8:* rm"));
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused_by_its_field() {
        for (rule, expect) in [
            (serde_json::json!({"type": "x"}), r#"devices[0].type: "x" is not a, b, c or u"#),
            (serde_json::json!({"type": "c", "access": "rx"}), r#"devices[0].access: "rx" has more than r, w and m"#),
            (serde_json::json!({"type": "c"}), "devices[0].access: needs some of r, w and m"),
            (
                serde_json::json!({"type": "c", "major": -2, "access": "r"}),
                "devices[0].major: -2 is not the number of a device",
            ),
            (serde_json::json!({"major": 1}), "devices[0].type: a rule for all types cannot have numbers"),
        ] {
            let error = read(serde_json::json!([rule])).unwrap_err().to_string();
            assert_eq!(error, format!("linux.resources.{expect}"));
        }
    }
}
