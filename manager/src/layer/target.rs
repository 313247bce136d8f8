use std::io::Read;
use std::path::PathBuf;

use tare_proto::containerd::types::Mount;

use super::view::Source;
use super::{Applied, Removals, apply, settle};
use crate::error::{Error, Result};

/// Where a layer goes. Nothing is mounted for it: what is written to the upper folder of an overlay is what one would
/// write through it, if removals are written in overlayfs's way.
#[derive(Debug)]
pub struct Target {
    pub folder: PathBuf,
    /// What shines through, top first.
    lower: Vec<PathBuf>,
    removals: Removals,
}

impl Target {
    /// # Errors
    /// The mounts of a snapshot are none that can be written to.
    pub fn of(mounts: &[Mount]) -> Result<Target> {
        match Source::of(mounts)? {
            Source::Overlay { upper: Some(folder), lower, user } => {
                let removals = if user { Removals::UserOverlay } else { Removals::Overlay };
                Ok(Target { folder, lower, removals })
            }
            Source::Overlay { upper: None, .. } => {
                Err(Error::InvalidArgument("unpacking into an overlay without upperdir".into()))
            }
            Source::Folder { path, read_only: false } => {
                Ok(Target { folder: path, lower: Vec::new(), removals: Removals::Remove })
            }
            Source::Folder { path, read_only: true } => {
                Err(Error::InvalidArgument(format!("unpacking into {}: it is read-only", path.display())))
            }
        }
    }

    /// Unpacks an archive, compressed or not.
    ///
    /// # Errors
    /// [`apply`]'s.
    pub fn unpack(&self, stream: impl Read) -> Result<Applied> {
        let applied = apply(stream, &self.folder, self.removals)?;
        settle(&self.folder, &applied, &self.lower)?;
        Ok(applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_folder_stands_for_the_overlay() {
        let mount = |kind: &str, source: &str, options: &[&str]| Mount {
            r#type: kind.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let overlay =
            Target::of(&[mount("overlay", "overlay", &["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"])]).unwrap();
        assert_eq!((overlay.folder, overlay.removals), ("/u".into(), Removals::Overlay));
        assert_eq!(overlay.lower, [PathBuf::from("/b"), PathBuf::from("/a")]);
        let user = mount("overlay", "overlay", &["workdir=/w", "upperdir=/u", "lowerdir=/b", "userxattr"]);
        assert_eq!(Target::of(&[user]).unwrap().removals, Removals::UserOverlay);
        let bind = Target::of(&[mount("bind", "/f", &["rw", "rbind"])]).unwrap();
        assert_eq!((bind.folder, bind.removals), ("/f".into(), Removals::Remove));
        for bad in [
            vec![],
            vec![mount("bind", "/f", &["ro"])],
            vec![mount("overlay", "o", &["lowerdir=/a:/b"])],
            vec![mount("nfs", "x", &[])],
        ] {
            assert!(Target::of(&bad).is_err());
        }
    }
}
