//! Who a container runs as: `user`, `user:group`, by name or number, looked up in the image.
//!
//! The image chose these files: they are opened inside its root, must be regular, and are read to a bound. A number is a
//! number, whatever the files say, and one that is too large is refused, never cut (CVE-2024-40635).

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::error::{Error, Result};

/// A passwd file longer than this is not read further (CVE-2026-47262).
const LONGEST: u64 = 10 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

impl Default for User {
    fn default() -> User {
        User { uid: 0, gid: 0, groups: Vec::new(), home: "/root".into() }
    }
}

impl User {
    /// # Errors
    /// `InvalidArgument`: a name that the image does not have, or a number out of range.
    pub fn resolve(text: &str, rootfs: &Path) -> Result<User> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let passwd = rows(rootfs, "etc/passwd", 7);
        let user = if user.is_empty() { "0" } else { user };
        let row = match number(user)? {
            Some(uid) => passwd.iter().find(|row| row[2].parse() == Ok(uid)),
            None => Some(passwd.iter().find(|row| row[0] == user).ok_or_else(|| unknown("user", user))?),
        };
        let uid = match number(user)? {
            Some(uid) => uid,
            None => id(row.map_or("", |row| &row[2]))?,
        };
        let groups = rows(rootfs, "etc/group", 4);
        let gid = match group {
            None => row.map_or(Ok(0), |row| id(&row[3]))?,
            Some(group) => match number(group)? {
                Some(gid) => gid,
                None => id(&groups.iter().find(|row| row[0] == group).ok_or_else(|| unknown("group", group))?[2])?,
            },
        };
        let name = row.map(|row| row[0].clone());
        let member =
            |row: &&Vec<String>| name.as_ref().is_some_and(|name| row[3].split(',').any(|member| member == name));
        let mut more: Vec<u32> = if group.is_none() {
            groups.iter().filter(member).filter_map(|row| id(&row[2]).ok()).collect()
        } else {
            Vec::new()
        };
        more.retain(|other| *other != gid);
        more.insert(0, gid); // the primary one too, or a file that is closed to it would be open (CVE-2023-25173)
        let home = row.map_or_else(|| "/".to_owned(), |row| row[5].clone());
        let home = if home.contains(['\n', '\0']) || home.is_empty() { "/".into() } else { home };
        Ok(User { uid, gid, groups: more, home })
    }
}

impl User {
    /// Adds groups, by name or number.
    ///
    /// # Errors
    /// As [`User::resolve`].
    pub fn join(&mut self, groups: &[String], rootfs: &Path) -> Result<()> {
        let known = if groups.is_empty() { Vec::new() } else { rows(rootfs, "etc/group", 3) };
        for group in groups {
            let gid = match number(group)? {
                Some(gid) => gid,
                None => id(&known.iter().find(|row| row[0] == *group).ok_or_else(|| unknown("group", group))?[2])?,
            };
            if !self.groups.contains(&gid) {
                self.groups.push(gid);
            }
        }
        Ok(())
    }
}

pub(crate) fn unknown(kind: &str, name: &str) -> Error {
    Error::InvalidArgument(format!("unable to find {kind} {name}: no matching entries in the image"))
}

/// A number if the text is one; too large a one is an error, since as a name it could be root.
pub(crate) fn number(text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    id(text).map(Some)
}

pub(crate) fn id(text: &str) -> Result<u32> {
    let number = text.parse::<u32>().ok().filter(|number| i32::try_from(*number).is_ok());
    number.ok_or_else(|| Error::InvalidArgument(format!("{text:?} is not a user or group id")))
}

/// The rows of a file of the image with at least so many fields; none if there is no such file.
pub(crate) fn rows(rootfs: &Path, file: &str, fields: usize) -> Vec<Vec<String>> {
    let open = || {
        let root = openat(CWD, rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(
            &root,
            file,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    };
    let Ok(file) = open().map(std::fs::File::from) else { return Vec::new() };
    if !file.metadata().is_ok_and(|there| there.is_file()) {
        return Vec::new(); // a fifo or a device would keep us waiting
    }
    let lines = BufReader::new(file.take(LONGEST)).lines().map_while(std::result::Result::ok);
    let split = |line: String| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    lines.map(split).filter(|row| row.len() >= fields).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_looked_up_in_the_image_and_never_becomes_root_by_mistake() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n";
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nweb:x:33:\nlog:x:4:web\n").unwrap();
        let resolve = |text: &str| User::resolve(text, dir.path());
        let web = resolve("web").unwrap();
        assert_eq!((web.uid, web.gid, web.groups.as_slice(), web.home.as_str()), (33, 33, &[33, 4][..], "/srv"));
        assert_eq!(resolve("").unwrap().uid, 0);
        assert_eq!((resolve("1000").unwrap().uid, resolve("1000").unwrap().gid), (1000, 0));
        assert_eq!((resolve("web:log").unwrap().gid, resolve("7:8").unwrap().gid), (4, 8));
        let mut more = resolve("web").unwrap();
        more.join(&["log".into(), "7".into(), "33".into()], dir.path()).unwrap();
        assert_eq!(more.groups, [33, 4, 7]);
        assert!(more.join(&["none".into()], dir.path()).is_err());
        for bad in ["4294967296", "2147483648", "99999999999", "nobody", "web:none", "0x0"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }
}
