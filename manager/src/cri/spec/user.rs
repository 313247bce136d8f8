//! Who a container runs as: what its security context says, else what its image says; names and group memberships are
//! looked up in the image.

use std::path::Path;

use tare_proto::runtime::v1 as pb;

use crate::error::{Error, Result};
use crate::oci::user as users;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// The primary one too, or a file that is closed to it would be open (CVE-2023-25173).
    pub groups: Vec<u32>,
}

impl User {
    /// `rootfs` is the image's.
    ///
    /// # Errors
    /// `InvalidArgument`: a name that the image does not have, a number out of range, a group without a user.
    pub fn of(security: &pb::LinuxContainerSecurityContext, image: &str, rootfs: &Path) -> Result<User> {
        let (user, group) = asked(security, image)?;
        let passwd = users::rows(rootfs, "etc/passwd", 7);
        let number = users::number(&user)?;
        let row = match number {
            Some(uid) => passwd.iter().find(|row| row[2].parse() == Ok(uid)),
            None => Some(passwd.iter().find(|row| row[0] == user).ok_or_else(|| users::unknown("user", &user))?),
        };
        let uid = match (number, row) {
            (Some(uid), _) => uid,
            (None, row) => users::id(row.map_or("", |row| &row[2]))?,
        };
        let known = users::rows(rootfs, "etc/group", 4);
        let gid = match group.as_deref() {
            None => row.map_or(Ok(0), |row| users::id(&row[3]))?,
            Some(group) => match users::number(group)? {
                Some(gid) => gid,
                None => {
                    let row = known.iter().find(|row| row[0] == group);
                    users::id(&row.ok_or_else(|| users::unknown("group", group))?[2])?
                }
            },
        };
        let mut groups = vec![gid];
        if security.supplemental_groups_policy() == pb::SupplementalGroupsPolicy::Merge
            && let Some(row) = row
        {
            let member = |other: &&Vec<String>| other[3].split(',').any(|member| member == row[0]);
            groups.extend(known.iter().filter(member).filter_map(|other| users::id(&other[2]).ok()));
        }
        for group in &security.supplemental_groups {
            groups.push(id("security_context.supplemental_groups", *group)?);
        }
        let mut seen = std::collections::HashSet::new();
        groups.retain(|group| seen.insert(*group));
        Ok(User { uid, gid, groups })
    }

    /// As CRI shows it.
    pub fn shown(&self) -> pb::LinuxContainerUser {
        let groups = self.groups.iter().map(|group| i64::from(*group)).collect();
        pb::LinuxContainerUser { uid: self.uid.into(), gid: self.gid.into(), supplemental_groups: groups }
    }
}

/// The user and the group as text, a name or a number.
fn asked(security: &pb::LinuxContainerSecurityContext, image: &str) -> Result<(String, Option<String>)> {
    let group = security.run_as_group.as_ref().map(|group| id("security_context.run_as_group", group.value));
    let group = group.transpose()?.map(|group| group.to_string());
    let user = security.run_as_user.as_ref().map(|user| id("security_context.run_as_user", user.value)).transpose()?;
    if !security.run_as_username.is_empty() {
        return Ok((security.run_as_username.clone(), group));
    }
    match (user, group) {
        (Some(user), group) => Ok((user.to_string(), group)),
        (None, Some(group)) => Err(Error::InvalidArgument(format!(
            "security_context.run_as_group: group {group} is specified without user"
        ))),
        (None, None) => {
            let (user, group) = image.split_once(':').map_or((image, None), |(user, group)| (user, Some(group)));
            let user = if user.is_empty() { "0" } else { user };
            Ok((user.to_owned(), group.map(str::to_owned)))
        }
    }
}

fn id(field: &str, id: i64) -> Result<u32> {
    let small = u32::try_from(id).ok().filter(|id| i32::try_from(*id).is_ok());
    small.ok_or_else(|| Error::InvalidArgument(format!("{field}: {id} is not a user or group id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_the_one_asked_for_else_the_images_with_its_groups_unless_told_strictly() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/root:\nweb:x:33:34::/srv:\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nlog:x:4:web,x\nweb:x:34:\n").unwrap();
        let of = |image: &str, change: &dyn Fn(&mut pb::LinuxContainerSecurityContext)| {
            let mut security = pb::LinuxContainerSecurityContext::default();
            change(&mut security);
            User::of(&security, image, dir.path()).map(|user| (user.uid, user.gid, user.groups))
        };
        let value = |value| Some(pb::Int64Value { value });
        assert_eq!(of("", &|_| ()).unwrap(), (0, 0, vec![0]));
        assert_eq!(of("web", &|_| ()).unwrap(), (33, 34, vec![34, 4]));
        assert_eq!(of("7:log", &|_| ()).unwrap(), (7, 4, vec![4]));
        assert_eq!(of("web", &|s| s.run_as_user = value(1001)).unwrap(), (1001, 0, vec![0]));
        let both = of("", &|s| (s.run_as_user, s.run_as_group) = (value(33), value(9)));
        assert_eq!(both.unwrap(), (33, 9, vec![9, 4]));
        let more = of("", &|s| {
            s.run_as_username = "web".into();
            s.supplemental_groups = vec![5, 34];
        });
        assert_eq!(more.unwrap(), (33, 34, vec![34, 4, 5]));
        let strict = of("web", &|s| s.set_supplemental_groups_policy(pb::SupplementalGroupsPolicy::Strict));
        assert_eq!(strict.unwrap(), (33, 34, vec![34]));
        for (image, user, group, why) in [
            ("nobody", None, None, "unable to find user nobody"),
            ("4294967296", None, None, "is not a user or group id"),
            ("", None, value(3), "specified without user"),
            ("", value(-1), None, "security_context.run_as_user: -1"),
        ] {
            let error = of(image, &|s| (s.run_as_user, s.run_as_group) = (user, group)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
