//! A registry of one's own: Debian's `docker-registry` on a free port of the loopback address, gone when dropped.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::image::{self, Blob, Image};
use crate::programs;

pub struct Registry {
    server: Child,
    port: u16,
    _files: TempDir,
}

impl Registry {
    /// Starts a registry that keeps its files in a temporary folder below `dir`, and waits until it answers.
    ///
    /// # Errors
    /// Peers are not unpacked, or the registry does not come up within ten seconds.
    pub fn start(dir: &Path) -> Result<Registry> {
        let files = tempfile::Builder::new().prefix("registry.").tempdir_in(dir)?;
        let port = free_port()?;
        let config = files.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
                files.path().join("data").display()
            ),
        )?;
        let server = Command::new(programs::peer("bookworm", "docker-registry")?)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(files.path().join("log"))?)
            .spawn()
            .context("starting docker-registry")?;
        let mut registry = Registry { server, port, _files: files };
        registry.wait()?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT/NAME`, as clients want it.
    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Uploads `image` as `repository:tag`.
    ///
    /// # Errors
    /// The registry refused a part of it.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> Result<()> {
        for blob in image.layers.iter().chain([&image.config]) {
            self.upload(repository, blob).with_context(|| format!("pushing {} of {repository}", blob.digest))?;
        }
        ureq::put(self.url(&format!("{repository}/manifests/{tag}")))
            .content_type(image::MANIFEST)
            .send(&image.manifest.bytes[..])
            .with_context(|| format!("pushing the manifest of {repository}:{tag}"))?;
        Ok(())
    }

    /// Source: distribution-spec, "Pushing a blob monolithically", POST then PUT.
    fn upload(&self, repository: &str, blob: &Blob) -> Result<()> {
        let begun = ureq::post(self.url(&format!("{repository}/blobs/uploads/"))).send_empty()?;
        let place = begun.headers().get("location").context("no Location in the answer")?.to_str()?;
        let place =
            if place.starts_with('/') { format!("http://127.0.0.1:{}{place}", self.port) } else { place.to_owned() };
        let separator = if place.contains('?') { '&' } else { '?' };
        ureq::put(format!("{place}{separator}digest={}", blob.digest))
            .content_type("application/octet-stream")
            .send(&blob.bytes[..])?;
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v2/{path}", self.port)
    }

    fn wait(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(10);
        while ureq::get(self.url("")).call().is_err() {
            if let Some(status) = self.server.try_wait()? {
                bail!("docker-registry ended with {status}");
            }
            if Instant::now() > limit {
                bail!("docker-registry does not answer on port {}", self.port);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
