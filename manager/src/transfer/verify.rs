//! Whether an image may be pulled, as programs in a folder say: each is told the name and the digest before anything but the
//! manifest's digest is known here, and one that ends with another code than 0 forbids it.
//!
//! ```text
//! PROGRAM -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json  < descriptor  > reason
//! ```
//!
//! Source: containerd docs/image-verification.md, pkg/imageverifier/bindir.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::document::Descriptor;
use super::written::{Reference, json};
use crate::error::{Doing as _, Error, Result};

/// What is kept of what a program says; the rest is read and forgotten.
const LONGEST: u64 = 32 << 10;

#[derive(Debug, Clone)]
pub struct Verifiers {
    /// One that is not there allows everything.
    pub folder: PathBuf,
    /// So many of them are asked, in the order of their names; all if it is negative.
    pub most: i64,
    /// Each has this long.
    pub patience: Duration,
}

impl Verifiers {
    /// # Errors
    /// A program forbids it, or cannot be asked.
    pub async fn check(&self, name: &str, target: &Descriptor) -> Result<()> {
        let of = || format!("pull of {name} with digest {}", target.digest);
        for program in self.programs()? {
            let called = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let answer = tokio::time::timeout(self.patience, ask(&program, name, target)).await;
            let late = |_| Error::DeadlineExceeded(format!("no answer within {} s", self.patience.as_secs_f32()));
            let blocking = |error: Error| error.under(&format!("blocking {}: asking verifier {called}", of()));
            let (status, reason) = answer.map_err(late).and_then(|answer| answer).map_err(blocking)?;
            if !status.success() {
                let code = status.code().unwrap_or(-1);
                return Err(Error::Unknown(format!(
                    "image verifier bindir blocked {} for reason: verifier {called} rejected image (exit code {code}): {reason}",
                    of()
                )));
            }
            tracing::debug!(name, digest = target.digest, verifier = called, reason, "the pull is allowed");
        }
        Ok(())
    }

    fn programs(&self) -> Result<Vec<PathBuf>> {
        let doing = || format!("reading {}", self.folder.display());
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing(doing)?,
        };
        let mut programs = Vec::new();
        for entry in entries {
            programs.push(entry.doing(doing)?.path());
        }
        programs.sort();
        let most = usize::try_from(self.most).unwrap_or(programs.len());
        if programs.len() > most {
            tracing::warn!("{} has {} programs, the first {most} are asked", self.folder.display(), programs.len());
            programs.truncate(most);
        }
        Ok(programs)
    }
}

/// What a program makes of an image. Dropped, it ends the program.
async fn ask(program: &Path, name: &str, target: &Descriptor) -> Result<(ExitStatus, String)> {
    let doing = || format!("running {}", program.display());
    let mut child = Command::new(program)
        .args(["-name", name, "-digest", &target.digest])
        .args(["-stdin-media-type", "application/vnd.oci.descriptor.v1+json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .doing(doing)?;
    let (mut to, from, log) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let descriptor = json(&Reference::new(&target.media_type, &target.digest, target.size));
    let tell = async {
        if let Some(to) = &mut to {
            let _ = to.write_all(descriptor.as_bytes()).await; // not everybody reads it
        }
        drop(to);
    };
    let ((), said, logged, status) = tokio::join!(tell, head(from), head(log), child.wait());
    if !logged.is_empty() {
        tracing::debug!(verifier = %program.display(), "{logged}");
    }
    Ok((status.doing(doing)?, said))
}

/// The beginning of what is said, which is read to its end.
async fn head(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut said = Vec::new();
    let _ = (&mut from).take(LONGEST).read_to_end(&mut said).await; // what came before an error counts
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&said).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn target() -> Descriptor {
        Descriptor {
            media_type: "m".into(),
            digest: "sha256:d".into(),
            size: 3,
            annotations: HashMap::new(),
            platform: None,
            urls: Vec::new(),
        }
    }

    fn folder(programs: &[(&str, &str)]) -> (tempfile::TempDir, Verifiers) {
        let dir = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let verifiers = Verifiers { folder: dir.path().to_owned(), most: 10, patience: Duration::from_secs(60) };
        (dir, verifiers)
    }

    #[tokio::test]
    async fn each_program_is_told_the_image_and_all_must_agree() {
        let (dir, verifiers) =
            folder(&[("10-told", "echo \"$@\" > \"$0.args\"; cat > \"$0.stdin\""), ("20-good", "exit 0")]);
        let all = Verifiers { most: 2, ..verifiers.clone() };
        all.check("reg/a:1", &target()).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let args = "-name reg/a:1 -digest sha256:d -stdin-media-type application/vnd.oci.descriptor.v1+json\n";
        assert_eq!(read("10-told.args"), args);
        assert_eq!(read("10-told.stdin"), r#"{"mediaType":"m","digest":"sha256:d","size":3}"#);
    }

    #[tokio::test]
    async fn one_that_says_no_says_why_and_those_beyond_the_most_are_not_asked() {
        let (_dir, verifiers) = folder(&[("a", "exit 0"), ("b", "yes | head -c 100000 >&2; echo not signed; exit 4")]);
        let said = verifiers.check("reg/a:1", &target()).await.unwrap_err().to_string();
        let expected = "image verifier bindir blocked pull of reg/a:1 with digest sha256:d for reason: \
                        verifier b rejected image (exit code 4): not signed";
        assert_eq!(said, expected);
        Verifiers { most: 1, ..verifiers.clone() }.check("reg/a:1", &target()).await.unwrap();
        assert!(Verifiers { most: -1, ..verifiers }.check("reg/a:1", &target()).await.is_err());
    }

    #[tokio::test]
    async fn one_that_does_not_answer_or_does_not_run_forbids_and_no_folder_allows() {
        let (dir, verifiers) = folder(&[("slow", "exec sleep 1000")]);
        let quick = Verifiers { patience: Duration::from_millis(50), ..verifiers.clone() };
        let said = quick.check("reg/a:1", &target()).await.unwrap_err().to_string();
        assert!(said.contains("asking verifier slow: no answer within 0.05 s"), "{said}");
        std::fs::write(dir.path().join("slow"), "no program").unwrap();
        let said = verifiers.check("reg/a:1", &target()).await.unwrap_err().to_string();
        assert!(
            said.starts_with("blocking pull of reg/a:1 with digest sha256:d: asking verifier slow: running"),
            "{said}"
        );
        let none = Verifiers { folder: dir.path().join("none"), ..verifiers };
        none.check("reg/a:1", &target()).await.unwrap();
    }
}
