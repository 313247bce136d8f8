//! How long a request waits while the collector works on a large store: `cargo xtask bench manager` runs it.
//!
//! Fills a store with blobs and snapshots of which every other one is garbage, collects, and meanwhile reads and writes rows
//! as requests do. Prints JSON.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tare_manager::content::Content;
use tare_manager::error::Result;
use tare_manager::gc;
use tare_manager::names::{Digest, Labels, Namespace};
use tare_manager::snapshot::{OVERLAY, Snapshots};
use tare_manager::store::{Store, kind};
use tare_proto::containerd::services::content::v1::Info;
use tare_proto::containerd::services::images::v1::Image;

const BLOBS: usize = 100_000;
const SNAPSHOTS: usize = 10_000;

fn main() -> anyhow::Result<()> {
    let place = std::env::args_os().nth(1).ok_or_else(|| anyhow::anyhow!("collection DIR"))?;
    let dir = Path::new(&place);
    let store = Store::open(&dir.join("tared.db"))?;
    let content = Content::open(dir, store.clone())?;
    let snapshots = Snapshots::open(dir, store.clone())?;
    let ns = Namespace::parse("bench")?;
    fill(dir, &store, &snapshots, &ns)?;

    let (ended, begun) = (AtomicBool::new(false), Instant::now());
    let (reads, writes, took, gone) = std::thread::scope(|scope| {
        let reads = scope.spawn(|| probe(&ended, || store.list::<Image>(kind::IMAGE, &ns).map(|_| ())));
        let writes = scope
            .spawn(|| probe(&ended, || store.change(|rows| rows.put(kind::IMAGE, &ns, "probe", &Image::default()))));
        let gone = gc::collect(&store, &content, &snapshots);
        let took = begun.elapsed();
        ended.store(true, Ordering::SeqCst);
        (reads.join(), writes.join(), took, gone)
    });
    let gone = gone?;
    ended.store(false, Ordering::SeqCst);
    let alone = probe_for(Duration::from_secs(1), || {
        store.change(|rows| rows.put(kind::IMAGE, &ns, "probe", &Image::default()))
    })?;
    let thread = |_| anyhow::anyhow!("a probe has panicked");
    let (reads, writes) = (reads.map_err(thread)??, writes.map_err(thread)??);
    println!(
        "{}",
        serde_json::json!({
            "blobs": BLOBS, "snapshots": SNAPSHOTS, "collected": {"blobs": gone.blobs, "snapshots": gone.snapshots.len()},
            "seconds": took.as_secs_f64(), "read_ms": reads, "write_ms": writes, "write_ms_alone": alone,
        })
    );
    Ok(())
}

fn fill(dir: &Path, store: &Store, snapshots: &Snapshots, ns: &Namespace) -> Result<()> {
    let labels =
        |kept| if kept { Labels::from([("containerd.io/gc.root".into(), "now".into())]) } else { Labels::new() };
    let now = Some(SystemTime::now().into());
    for begin in (0..BLOBS).step_by(5000) {
        store.change(|rows| {
            for n in begin..begin + 5000 {
                let digest = Digest::of(&n.to_le_bytes());
                let path = dir.join("blobs/sha256").join(digest.hex());
                std::fs::write(&path, n.to_le_bytes())
                    .map_err(|error| tare_manager::error::Error::io(path.display(), &error))?;
                let labels = labels(n % 2 == 0);
                let info = Info { digest: digest.to_string(), size: 8, created_at: now, updated_at: now, labels };
                rows.put(kind::BLOB, ns, digest.as_str(), &info)?;
            }
            Ok(())
        })?;
    }
    (0..SNAPSHOTS).try_for_each(|n| {
        snapshots.prepare(ns, OVERLAY, &format!("key-{n}"), "", &labels(n % 2 == 0), false).map(|_| ())
    })
}

/// Median, 99th percentile and maximum of what a request takes, in milliseconds.
fn probe(ended: &AtomicBool, request: impl FnMut() -> Result<()>) -> Result<serde_json::Value> {
    probe_while(|| !ended.load(Ordering::SeqCst), request)
}

fn probe_for(time: Duration, request: impl FnMut() -> Result<()>) -> Result<serde_json::Value> {
    let begun = Instant::now();
    probe_while(|| begun.elapsed() < time, request)
}

fn probe_while(wanted: impl Fn() -> bool, mut request: impl FnMut() -> Result<()>) -> Result<serde_json::Value> {
    let mut took = Vec::new();
    while wanted() {
        let begun = Instant::now();
        request()?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(1));
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took.get(((took.len().max(1) - 1) as f64 * share).round() as usize);
    Ok(serde_json::json!({"requests": took.len(), "median": at(0.5), "p99": at(0.99), "most": at(1.0)}))
}
