//! Mount options: one table from each word to its effect.
//!
//! Source: runtime-spec config.md, "Linux mount options"; mount_setattr(2); fsconfig(2).

use Effect::{Bind, BindAll, Clear, ClearBelow, Ignored, Propagation, Set, SetBelow, Super, Unsupported};

pub const RDONLY: u64 = 0x1;
pub const NOSUID: u64 = 0x2;
pub const NODEV: u64 = 0x4;
pub const NOEXEC: u64 = 0x8;
/// The three ways to keep access times are one field; to change it, all of it is cleared.
pub const ATIME: u64 = 0x70;
const RELATIME: u64 = 0x00;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

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
    /// Known, and not supported yet: refused by name.
    Unsupported,
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
    ("idmap", Unsupported),
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
    ("remount", Unsupported),
    ("rexec", ClearBelow(NOEXEC)),
    ("ridmap", Unsupported),
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
    ("tmpcopyup", Unsupported),
    ("unbindable", Propagation(UNBINDABLE, false)),
];

/// What all options of one mount come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: Option<Depth>,
    pub here: Attributes,
    pub below: Attributes,
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
        if attribute & !ATIME == 0 {
            self.set = self.set & !ATIME | attribute;
            self.clear |= ATIME;
        } else {
            self.set |= attribute;
            self.clear &= !attribute;
        }
    }

    fn clear(&mut self, attribute: u64) {
        if attribute & !ATIME == 0 {
            if self.set & ATIME == attribute {
                self.set &= !ATIME; // back to the kernel's default, relatime
            }
            self.clear |= ATIME;
        } else {
            self.set &= !attribute;
            self.clear |= attribute;
        }
    }

    pub fn is_empty(self) -> bool {
        self == Attributes::default()
    }
}

impl Options {
    /// Reads the words of one mount.
    ///
    /// # Errors
    /// The word that is known and not supported.
    pub fn read(words: &[String]) -> Result<Options, &str> {
        let mut options = Options::default();
        for word in words {
            let Ok(index) = WORDS.binary_search_by_key(&word.as_str(), |(known, _)| known) else {
                let (key, value) =
                    word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value)));
                options.data.push((key.to_owned(), value.map(str::to_owned)));
                continue;
            };
            match WORDS[index].1 {
                Set(attribute) => options.here.set(attribute),
                Clear(attribute) => options.here.clear(attribute),
                SetBelow(attribute) => options.below.set(attribute),
                ClearBelow(attribute) => options.below.clear(attribute),
                Propagation(kind, all) => {
                    options.propagation.push((kind, if all { Depth::WithAllBelow } else { Depth::Alone }));
                }
                Super => options.data.push((word.clone(), None)),
                Bind => options.bind = options.bind.or(Some(Depth::Alone)),
                BindAll => options.bind = Some(Depth::WithAllBelow),
                Ignored => {}
                Unsupported => return Err(word),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Options {
        let words: Vec<String> = words.split(',').map(str::to_owned).collect();
        Options::read(&words).unwrap()
    }

    #[test]
    fn the_table_is_sorted_so_that_it_can_be_searched() {
        assert!(WORDS.is_sorted_by_key(|(word, _)| word));
    }

    #[test]
    fn the_last_word_on_an_attribute_counts() {
        assert_eq!(read("ro,rw").here, Attributes { set: 0, clear: RDONLY });
        assert_eq!(read("rw,ro").here, Attributes { set: RDONLY, clear: 0 });
        assert_eq!(read("noatime,strictatime").here, Attributes { set: STRICTATIME, clear: ATIME });
    }

    #[test]
    fn a_change_of_access_times_clears_the_whole_field() {
        assert_eq!(read("noatime").here, Attributes { set: NOATIME, clear: ATIME });
        assert_eq!(read("atime").here, Attributes { set: 0, clear: ATIME });
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
    fn an_option_that_is_not_supported_is_refused_by_name() {
        assert_eq!(Options::read(&["tmpcopyup".into()]), Err("tmpcopyup"));
    }
}
