//! Snapshots for a user namespace: labels say which ids it has. The layer's own folder begins as that of its root, and
//! whoever mounts the snapshot shows the layers below it with the ids mapped (`uidmap=`, `gidmap=`).
//!
//! Source: containerd `core/snapshots/snapshotter.go`, `LabelSnapshotUIDMapping`; mount_setattr(2), `MOUNT_ATTR_IDMAP`.

use std::os::unix::fs::lchown;
use std::path::Path;

use tare_proto::containerd::types::Mount;

use crate::error::{Doing as _, Error, Result};
use crate::names::Labels;

const LABELS: [(&str, &str); 2] =
    [("containerd.io/snapshot/uidmapping", "uidmap"), ("containerd.io/snapshot/gidmapping", "gidmap")];

/// The labels of a snapshot whose ids are mapped: ids inside, ids on this host, how many.
pub fn labels(uids: (u32, u32, u32), gids: (u32, u32, u32)) -> Labels {
    let text = |(inside, host, length): (u32, u32, u32)| format!("{inside}:{host}:{length}");
    LABELS.iter().zip([text(uids), text(gids)]).map(|((label, _), text)| ((*label).to_owned(), text)).collect()
}

/// Gives a layer's own folder to whom the namespace has as its root.
///
/// # Errors
/// A label is malformed, or the owner cannot be changed.
pub fn own(layer: &Path, labels: &Labels) -> Result<()> {
    let [Some(uid), Some(gid)] = LABELS.map(|(label, _)| labels.get(label).map(|text| root(label, text))) else {
        return Ok(());
    };
    lchown(layer, Some(uid?), Some(gid?)).doing(|| format!("giving {} to a user namespace's root", layer.display()))
}

/// What to mount, with the ids mapped.
pub fn mapped(mut mounts: Vec<Mount>, labels: &Labels) -> Vec<Mount> {
    for (label, option) in LABELS {
        if let Some(text) = labels.get(label) {
            mounts.iter_mut().for_each(|mount| mount.options.push(format!("{option}={text}")));
        }
    }
    mounts
}

/// Whom 0 inside stands for, of mappings like `0:100000:65536`, with commas between several.
fn root(label: &str, text: &str) -> Result<u32> {
    let wrong = || Error::InvalidArgument(format!("{label}: {text:?} does not map 0"));
    let numbers =
        |mapping: &str| mapping.split(':').map(|number| number.parse::<u32>().ok()).collect::<Option<Vec<_>>>();
    let host = text.split(',').find_map(|mapping| match numbers(mapping)?.as_slice() {
        [0, host, length] if *length > 0 => Some(*host),
        _ => None,
    });
    host.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_says_whose_the_layer_is_and_goes_along_with_the_mount() {
        let labels = labels((0, 1000, 65536), (0, 2000, 65536));
        assert_eq!(root("l", "5:1:1,0:1000:65536").unwrap(), 1000);
        for bad in ["", "0", "0:1", "0:1:0", "1:0:5", "0:x:1"] {
            assert!(root("l", bad).is_err(), "{bad}");
        }
        let plain = Mount { options: vec!["index=off".into()], ..Mount::default() };
        let mounts = mapped(vec![plain.clone()], &labels);
        assert_eq!(mounts[0].options, ["index=off", "uidmap=0:1000:65536", "gidmap=0:2000:65536"]);
        assert_eq!(mapped(vec![plain.clone()], &Labels::new()), [plain]);
    }
}
