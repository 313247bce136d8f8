//! How much of the disk images and containers take: the kubelet collects images by it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tare_proto::containerd::services::snapshots::v1::Kind;
use tare_proto::runtime::v1 as pb;

use crate::cri::{Cri, namespace};
use crate::error::{Error, Result};
use crate::snapshot::OVERLAY;

/// A writable layer is counted again after this time: it means a look at every file in it.
const FRESH: Duration = Duration::from_secs(10);

/// When a layer was counted, its bytes and its inodes.
type Layer = (Instant, i64, i64);

/// What writable layers took when they were last counted, by key.
#[derive(Clone, Default)]
pub struct Counted(Arc<Mutex<HashMap<String, Layer>>>);

impl Cri {
    pub(super) fn filesystem_usage(&self) -> Result<pb::FilesystemUsage> {
        let (mut bytes, mut inodes) = (0, 0);
        let mut known = self.counted.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut counted = HashMap::new();
        for info in self.parts.snapshots.list(&namespace(), OVERLAY)? {
            let fresh = known.remove(&info.name).filter(|(at, ..)| at.elapsed() < FRESH);
            let layer = match fresh {
                Some(layer) if info.kind() == Kind::Active => layer,
                _ => match self.parts.snapshots.usage(&namespace(), OVERLAY, &info.name) {
                    Ok((bytes, inodes)) => (Instant::now(), bytes, inodes),
                    Err(Error::NotFound(_)) => continue, // removed meanwhile
                    Err(error) => return Err(error),
                },
            };
            bytes += layer.1;
            inodes += layer.2;
            if info.kind() == Kind::Active {
                counted.insert(info.name, layer);
            }
        }
        *self.counted.0.lock().unwrap_or_else(PoisonError::into_inner) = counted;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let folder = self.parts.root.join("snapshots").join(OVERLAY);
        let value = |number: i64| Some(pb::UInt64Value { value: number.unsigned_abs() });
        Ok(pb::FilesystemUsage {
            timestamp: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            fs_id: Some(pb::FilesystemIdentifier { mountpoint: folder.display().to_string() }),
            used_bytes: value(bytes),
            inodes_used: value(inodes),
        })
    }
}
