//! A registry of one's own: Debian's `docker-registry` on a free port of the loopback address, gone when dropped.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::image::{self, Blob, Image};
use crate::programs;

pub struct Registry {
    server: Child,
    port: u16,
    files: TempDir,
}

/// What a registry asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Nothing, over plain HTTP.
    Open,
    /// The name [`NAME`] and the password [`PASSWORD`], over plain HTTP.
    Locked,
    /// Both, over TLS with the certificate [`Registry::certificate`].
    Secure,
}

pub const NAME: &str = "me";
pub const PASSWORD: &str = "secret";
/// The password as bcrypt has it.
const HASHED: &str = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

impl Registry {
    /// Starts a registry that keeps its files in a temporary folder below `dir`, and waits until it answers.
    ///
    /// # Errors
    /// Peers are not unpacked, or the registry does not come up within ten seconds.
    pub fn start(dir: &Path) -> Result<Registry> {
        Registry::behind(Door::Open, dir)
    }

    /// The same, with a door.
    ///
    /// # Errors
    /// As [`Registry::start`], or `openssl` is missing.
    pub fn behind(door: Door, dir: &Path) -> Result<Registry> {
        let files = tempfile::Builder::new().prefix("registry.").tempdir_in(dir)?;
        let port = free_port()?;
        let at = files.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: '{at}/data'}}}}\n"
        );
        if door != Door::Open {
            std::fs::write(files.path().join("htpasswd"), format!("{NAME}:{HASHED}\n"))?;
            config += &format!("auth: {{htpasswd: {{realm: test, path: '{at}/htpasswd'}}}}\n");
        }
        let mut tls = String::new();
        if door == Door::Secure {
            make_certificate(files.path())?;
            tls = format!(", tls: {{certificate: '{at}/cert.pem', key: '{at}/key.pem'}}");
        }
        config += &format!("http: {{addr: '127.0.0.1:{port}'{tls}}}\n");
        let file = files.path().join("config.yml");
        std::fs::write(&file, config)?;
        let server = Command::new(programs::peer("bookworm", "docker-registry")?)
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(files.path().join("log"))?)
            .spawn()
            .context("starting docker-registry")?;
        let mut registry = Registry { server, port, files };
        registry.wait()?;
        Ok(registry)
    }

    /// Of a secure registry: what its clients have to trust.
    pub fn certificate(&self) -> PathBuf {
        self.files.path().join("cert.pem")
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

    /// Uploads an index of an image for this machine and one for another, as `repository:tag`; gives its reference.
    ///
    /// # Errors
    /// The registry refused a part of it.
    pub fn push_for_two(&self, repository: &str, tag: &str) -> Result<String> {
        let (own, other) = (image::busybox()?, image::busybox()?.for_another_platform()?);
        let mut manifests = Vec::new();
        for (image, architecture) in [(&own, image::architecture()), (&other, "riscv64")] {
            self.push(repository, architecture, image)?;
            manifests.push(serde_json::json!({
                "mediaType": image::MANIFEST, "digest": image.manifest.digest, "size": image.manifest.bytes.len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string();
        ureq::put(self.url(&format!("{repository}/manifests/{tag}"))).content_type(INDEX).send(index.as_bytes())?;
        Ok(self.reference(&format!("{repository}:{tag}")))
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
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
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

/// For this machine's address alone.
fn make_certificate(folder: &Path) -> Result<()> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("cert.pem"))
        .stderr(Stdio::null())
        .status()
        .context("making a certificate with openssl")?;
    if made.success() { Ok(()) } else { bail!("openssl makes no certificate: {made}") }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
