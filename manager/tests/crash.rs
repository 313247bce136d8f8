//! The stores are killed at any moment, and opened again: a few times, or as often as `TARE_CRASH_ROUNDS` says.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use tare_manager::content::Content;
use tare_manager::names::{Digest, Labels, Namespace};
use tare_manager::snapshot::{OVERLAY, Snapshots};
use tare_manager::store::Store;
use tare_proto::containerd::services::snapshots::v1::Kind;

/// Set for the process that is to be killed: where it works.
const PLACE: &str = "TARE_CRASH_PLACE";
/// A round removes what the one so many before it made.
const KEPT: usize = 3;

struct Stores {
    content: Content,
    snapshots: Snapshots,
    ns: Namespace,
}

impl Stores {
    fn open(dir: &Path) -> Stores {
        let store = Store::open(&dir.join("db")).unwrap();
        let content = Content::open(dir, store.clone()).unwrap();
        let snapshots = Snapshots::open(dir, store).unwrap();
        Stores { content, snapshots, ns: Namespace::parse("crash").unwrap() }
    }

    fn round(&self, n: usize) {
        let text = text(n);
        let mut writer = self.content.writer(&self.ns, &format!("r{n}"), 0, None).unwrap();
        writer.write(text.as_bytes()).unwrap();
        writer.commit(text.len() as u64, Some(&Digest::of(text.as_bytes())), &Labels::new()).unwrap();

        let (key, name) = (format!("k{n}"), format!("s{n}"));
        let mounts = self.snapshots.prepare(&self.ns, OVERLAY, &key, "", &Labels::new(), false).unwrap();
        std::fs::write(Path::new(&mounts[0].source).join("file"), &text).unwrap();
        self.snapshots.commit(&self.ns, OVERLAY, &name, &key, &Labels::new(), None).unwrap();

        if let Some(old) = n.checked_sub(KEPT) {
            self.content.delete(&self.ns, &Digest::of(self::text(old).as_bytes())).unwrap();
            self.snapshots.remove(&self.ns, OVERLAY, &format!("s{old}")).unwrap();
        }
        self.content.sweep_blobs().unwrap();
        self.content.sweep_ingests(&HashSet::new()).unwrap();
    }

    /// The next command works.
    fn again(&self) {
        let mounts = self.snapshots.prepare(&self.ns, OVERLAY, "again", "", &Labels::new(), false).unwrap();
        std::fs::write(Path::new(&mounts[0].source).join("file"), text(9999)).unwrap();
        self.snapshots.commit(&self.ns, OVERLAY, "s9999", "again", &Labels::new(), None).unwrap();
        for status in self.content.statuses(&self.ns).unwrap() {
            self.content.writer(&self.ns, &status.reference, 0, None).unwrap().discard().unwrap();
        }
        assert_eq!(self.content.statuses(&self.ns).unwrap().len(), 0);
    }

    /// Whatever has a row is whole, and whatever has none is not there.
    fn check(&self, dir: &Path, told: Option<usize>) {
        self.content.sweep_blobs().unwrap();
        self.content.sweep_ingests(&HashSet::new()).unwrap();
        let blobs = self.content.list(&self.ns).unwrap();
        for blob in &blobs {
            let digest = Digest::parse(&blob.digest).unwrap();
            assert_eq!(Digest::of(&self.content.read(&self.ns, &digest, 1 << 20).unwrap()), digest);
        }
        assert_eq!(std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count(), blobs.len());

        let snapshots = self.snapshots.list(&self.ns, OVERLAY).unwrap();
        for info in snapshots.iter().filter(|info| info.kind() == Kind::Committed) {
            let row = self.snapshots.row(&self.ns, OVERLAY, &info.name).unwrap();
            let file = std::fs::read_to_string(self.snapshots.layer(row.number).join("file")).unwrap();
            assert_eq!(file, text(info.name[1..].parse().unwrap()), "{}", info.name);
        }
        assert_eq!(std::fs::read_dir(dir.join("snapshots").join(OVERLAY)).unwrap().count(), snapshots.len());

        if let Some(n) = told {
            self.content.info(&self.ns, &Digest::of(text(n).as_bytes())).unwrap();
            self.snapshots.info(&self.ns, OVERLAY, &format!("s{n}")).unwrap();
        }
    }
}

fn text(n: usize) -> String {
    format!("round {n}\n").repeat(4096)
}

/// The process that is killed: works until then, and tells of each round that is done.
fn work(dir: &Path) -> ! {
    let stores = Stores::open(dir);
    for n in 0.. {
        stores.round(n);
        println!("done {n}");
        std::io::stdout().flush().unwrap();
    }
    unreachable!("it is killed before it has counted to the end")
}

#[test]
fn killed_at_any_moment_the_stores_hold_the_old_or_the_new_and_go_on() {
    if let Some(dir) = std::env::var_os(PLACE) {
        work(Path::new(&dir));
    }
    let kills = std::env::var("TARE_CRASH_ROUNDS").map_or(8, |rounds| rounds.parse().unwrap());
    for rounds in (0..8).cycle().take(kills) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_at_any_moment_the_stores_hold_the_old_or_the_new_and_go_on", "--nocapture"])
            .env(PLACE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let done = |line: String| line.rsplit_once("done ").and_then(|(_, n)| n.parse::<usize>().ok());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).filter_map(done);
        let told = lines.by_ref().take(rounds).last();
        child.kill().unwrap(); // SIGKILL, wherever it is by now
        let told = lines.last().or(told); // it may have told more before it died
        child.wait().unwrap();

        let stores = Stores::open(dir.path());
        stores.check(dir.path(), told);
        let active = stores.snapshots.list(&stores.ns, OVERLAY).unwrap();
        for info in active.iter().filter(|info| info.kind() == Kind::Active) {
            stores.snapshots.remove(&stores.ns, OVERLAY, &info.name).unwrap();
        }
        stores.again();
        stores.check(dir.path(), None);
    }
}
