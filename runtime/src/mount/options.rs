//! Mount options: one table from each word to its effect.
//!
//! Source: runtime-spec config.md, "Linux mount options"; mount_setattr(2); fsconfig(2).

use rustix::io::Errno;

use Effect::{Bind, BindAll, Clear, ClearBelow, CopyUp, IdMap, Ignored, Propagation, Remount, Set, SetBelow, Super};

pub const RDONLY: u64 = 0x1;
pub const NOSUID: u64 = 0x2;
pub const NODEV: u64 = 0x4;
pub const NOEXEC: u64 = 0x8;
/// The three ways to keep access times are one field; to change it, all of it is cleared.
pub const ATIME: u64 = 0x70;
const RELATIME: u64 = 0x00;
pub const NOATIME: u64 = 0x10;
pub const STRICTATIME: u64 = 0x20;
pub const NODIRATIME: u64 = 0x80;
pub const NOSYMFOLLOW: u64 = 0x20_0000;
/// What a mount that comes from a more privileged user namespace may not lose: mount_namespaces(7), point 4.
pub const LOCKABLE: u64 = RDONLY | NOSUID | NODEV | NOEXEC;

pub const SHARED: u64 = 1 << 20;
pub const PRIVATE: u64 = 1 << 18;
pub const SLAVE: u64 = 1 << 19;
pub const UNBINDABLE: u64 = 1 << 17;

/// What a word does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// An attribute of the mount.
    Set(u64),
    Clear(u64),
    /// The same for the whole tree.
    SetBelow(u64),
    ClearBelow(u64),
    /// How mounts travel to and from peers; with true, for the whole tree.
    Propagation(u64, bool),
    /// A flag of the file system itself.
    Super,
    Bind,
    BindAll,
    /// A default, or of no effect on Linux any more.
    Ignored,
    /// A change of what is mounted there already.
    Remount,
    /// A tmpfs begins with what lies below it.
    CopyUp,
    /// Files show mapped owners; with true, in the whole tree.
    IdMap(bool),
}

/// Every word that is not for the file system.
pub const WORDS: &[(&str, Effect)] = &[
    ("async", Ignored),
    ("atime", Clear(NOATIME)),
    ("bind", Bind),
    ("defaults", Ignored),
    ("dev", Clear(NODEV)),
    ("diratime", Clear(NODIRATIME)),
    ("dirsync", Super),
    ("exec", Clear(NOEXEC)),
    ("idmap", IdMap(false)),
    ("iversion", Super),
    ("lazytime", Super),
    ("loud", Ignored),
    ("mand", Super),
    ("noatime", Set(NOATIME)),
    ("nodev", Set(NODEV)),
    ("nodiratime", Set(NODIRATIME)),
    ("noexec", Set(NOEXEC)),
    ("noiversion", Ignored),
    ("nolazytime", Ignored),
    ("nomand", Ignored),
    ("norelatime", Clear(RELATIME)),
    ("nostrictatime", Clear(STRICTATIME)),
    ("nosuid", Set(NOSUID)),
    ("nosymfollow", Set(NOSYMFOLLOW)),
    ("private", Propagation(PRIVATE, false)),
    ("ratime", ClearBelow(NOATIME)),
    ("rbind", BindAll),
    ("rdev", ClearBelow(NODEV)),
    ("rdiratime", ClearBelow(NODIRATIME)),
    ("relatime", Set(RELATIME)),
    ("remount", Remount),
    ("rexec", ClearBelow(NOEXEC)),
    ("ridmap", IdMap(true)),
    ("rnoatime", SetBelow(NOATIME)),
    ("rnodev", SetBelow(NODEV)),
    ("rnodiratime", SetBelow(NODIRATIME)),
    ("rnoexec", SetBelow(NOEXEC)),
    ("rnorelatime", ClearBelow(RELATIME)),
    ("rnostrictatime", ClearBelow(STRICTATIME)),
    ("rnosuid", SetBelow(NOSUID)),
    ("rnosymfollow", SetBelow(NOSYMFOLLOW)),
    ("ro", Set(RDONLY)),
    ("rprivate", Propagation(PRIVATE, true)),
    ("rrelatime", SetBelow(RELATIME)),
    ("rro", SetBelow(RDONLY)),
    ("rrw", ClearBelow(RDONLY)),
    ("rshared", Propagation(SHARED, true)),
    ("rslave", Propagation(SLAVE, true)),
    ("rstrictatime", SetBelow(STRICTATIME)),
    ("rsuid", ClearBelow(NOSUID)),
    ("rsymfollow", ClearBelow(NOSYMFOLLOW)),
    ("runbindable", Propagation(UNBINDABLE, true)),
    ("rw", Clear(RDONLY)),
    ("shared", Propagation(SHARED, false)),
    ("silent", Ignored),
    ("slave", Propagation(SLAVE, false)),
    ("strictatime", Set(STRICTATIME)),
    ("suid", Clear(NOSUID)),
    ("symfollow", Clear(NOSYMFOLLOW)),
    ("sync", Super),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(UNBINDABLE, false)),
];

/// What all options of one mount come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: Option<Depth>,
    pub here: Attributes,
    pub below: Attributes,
    /// Whether any word was about attributes of the mount itself: then a bind mount does not keep its source's.
    pub any_here: bool,
    pub remount: bool,
    pub copy_up: bool,
    pub id_map: Option<Depth>,
    /// In the order given: each is a change of its own.
    pub propagation: Vec<(u64, Depth)>,
    /// What the file system gets: flags and `key=value`, in order.
    pub data: Vec<(String, Option<String>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    Alone,
    WithAllBelow,
}

/// Attributes that were asked to be on, and those asked to be off; the last word on each counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    fn set(&mut self, attribute: u64) {
        match attribute {
            NODIRATIME => self.set |= NODIRATIME,
            _ if attribute & !ATIME == 0 => self.set = self.set & !ATIME | attribute,
            _ => {
                self.set |= attribute;
                self.clear &= !attribute;
                return;
            }
        }
        self.clear |= ATIME | NODIRATIME; // one field for the kernel's caller: all of it is said anew
    }

    /// Access times that are not to be kept in some way are kept as they were, as by mount(8).
    fn clear(&mut self, attribute: u64) {
        self.set &= !attribute;
        if attribute & !(ATIME | NODIRATIME) != 0 {
            self.clear |= attribute;
        } else if self.set & (ATIME | NODIRATIME) == 0 {
            self.clear &= !(ATIME | NODIRATIME);
        }
    }

    /// In a whole tree, taking one of them back means the kernel's default.
    fn clear_below(&mut self, attribute: u64) {
        self.set &= !attribute;
        self.clear |= if attribute & !ATIME == 0 { ATIME } else { attribute };
    }

    pub fn is_empty(self) -> bool {
        self == Attributes::default()
    }
}

impl Options {
    /// Reads the words of one mount.
    ///
    pub fn read(words: &[String]) -> Options {
        let mut options = Options::default();
        for word in words {
            let Ok(index) = WORDS.binary_search_by_key(&word.as_str(), |(known, _)| known) else {
                let (key, value) =
                    word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value)));
                options.data.push((key.to_owned(), value.map(str::to_owned)));
                continue;
            };
            let effect = WORDS[index].1;
            options.any_here |= matches!(effect, Set(_) | Clear(_));
            match effect {
                Set(attribute) => options.here.set(attribute),
                Clear(attribute) => options.here.clear(attribute),
                SetBelow(attribute) => options.below.set(attribute),
                ClearBelow(attribute) => options.below.clear_below(attribute),
                Propagation(kind, all) => options.propagation.push((kind, depth(all))),
                Super => options.data.push((word.clone(), None)),
                Bind => options.bind = options.bind.or(Some(Depth::Alone)),
                BindAll => options.bind = Some(Depth::WithAllBelow),
                Remount => options.remount = true,
                CopyUp => options.copy_up = true,
                IdMap(all) => options.id_map = Some(depth(all)),
                Ignored => {}
            }
        }
        options
    }

    /// What a bind mount of a source with the attributes `there` gets. Words about attributes stand for all of them, as
    /// in a remount by mount(2): what is not asked for is taken off. In a user namespace that is not possible for those
    /// that the source's owner may rely on, so they stay; asking for the contrary is refused.
    ///
    /// # Errors
    /// `EPERM`, as the kernel would say of a locked attribute.
    pub fn for_bind(&self, there: u64, user_namespace: bool) -> Result<Attributes, Errno> {
        if !self.any_here {
            return Ok(Attributes::default());
        }
        let mut attributes = self.here;
        let all = LOCKABLE | NOSYMFOLLOW;
        let lost = if user_namespace { NOSYMFOLLOW } else { all };
        attributes.clear |= lost & !self.here.set;
        if user_namespace {
            let times = ATIME | NODIRATIME;
            let other_times = attributes.clear & times != 0 && attributes.set & times != there & times;
            if attributes.clear & !attributes.set & there & LOCKABLE != 0 || other_times {
                return Err(Errno::PERM);
            }
        }
        Ok(attributes)
    }
}

fn depth(all: bool) -> Depth {
    if all { Depth::WithAllBelow } else { Depth::Alone }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Options {
        let words: Vec<String> = words.split(',').map(str::to_owned).collect();
        Options::read(&words)
    }

    #[test]
    fn the_table_is_sorted_so_that_it_can_be_searched() {
        assert!(WORDS.is_sorted_by_key(|(word, _)| word));
    }

    #[test]
    fn the_last_word_on_an_attribute_counts() {
        assert_eq!(read("ro,rw").here, Attributes { set: 0, clear: RDONLY });
        assert_eq!(read("rw,ro").here, Attributes { set: RDONLY, clear: 0 });
        assert_eq!(read("noatime,strictatime").here, Attributes { set: STRICTATIME, clear: ATIME | NODIRATIME });
    }

    #[test]
    fn a_change_of_access_times_clears_the_whole_field() {
        let clear = ATIME | NODIRATIME;
        assert_eq!(read("noatime").here, Attributes { set: NOATIME, clear });
        assert_eq!(read("noatime,nodiratime").here, Attributes { set: NOATIME | NODIRATIME, clear });
        assert_eq!(read("relatime").here, Attributes { set: 0, clear });
        assert_eq!(read("atime").here, Attributes::default(), "without another way to keep them");
        assert_eq!(read("ratime").below, Attributes { set: 0, clear: ATIME });
    }

    #[test]
    fn what_is_not_in_the_table_is_for_the_file_system() {
        let options = read("mode=755,newinstance,size=65536k,nosuid");
        let expected = [("mode", Some("755")), ("newinstance", None), ("size", Some("65536k"))];
        let data: Vec<_> = options.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(data, expected);
        assert_eq!(options.here.set, NOSUID);
    }

    #[test]
    fn words_on_a_bind_mount_stand_for_all_its_attributes() {
        let clear = LOCKABLE | NOSYMFOLLOW;
        assert_eq!(read("bind").for_bind(RDONLY, false), Ok(Attributes::default()));
        assert_eq!(read("bind,dev").for_bind(RDONLY, false), Ok(Attributes { set: 0, clear }));
        let noexec = Attributes { set: NOEXEC, clear: clear & !NOEXEC };
        assert_eq!(read("bind,noexec").for_bind(RDONLY, false), Ok(noexec));
    }

    #[test]
    fn a_user_namespace_cannot_take_attributes_off() {
        assert_eq!(
            read("bind,noexec").for_bind(RDONLY, true),
            Ok(Attributes { set: NOEXEC, clear: NOSYMFOLLOW }),
            "what was not named stays"
        );
        assert_eq!(read("bind,rw").for_bind(RDONLY, true), Err(Errno::PERM));
        assert!(read("bind,rw").for_bind(NOSUID, true).is_ok(), "there is nothing to take off");
        assert_eq!(read("bind,relatime").for_bind(NOATIME, true), Err(Errno::PERM));
        assert!(read("bind,atime").for_bind(NOATIME, true).is_ok(), "access times stay as they are");
    }
}
