//! Images made on the spot: real OCI manifests, configurations and gzip layers, from files given in memory.

use std::io::Write as _;

use anyhow::Result;
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::programs;

/// Bytes and their digest, `sha256:…`.
pub struct Blob {
    pub digest: String,
    pub bytes: Vec<u8>,
}

impl Blob {
    fn of(bytes: Vec<u8>) -> Blob {
        Blob { digest: digest(&bytes), bytes }
    }
}

/// An image of one platform: what a registry needs to serve it.
pub struct Image {
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Blob>,
}

/// `sha256:` and the digest in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The commands that busybox answers to in [`busybox`].
const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "date", "dd", "df", "echo", "env", "false", "free", "grep", "head", "hostname", "id",
    "kill", "ls", "mkdir", "mount", "nc", "ps", "pwd", "readlink", "rm", "sed", "seq", "sh", "sleep", "stty", "tail",
    "touch", "true", "tty", "umount", "uname", "wc", "yes",
];

/// A small image of one layer, from Debian's `busybox-static`.
///
/// # Errors
/// Peers are not unpacked.
pub fn busybox() -> Result<Image> {
    let program = std::fs::read(programs::peer("bookworm", "busybox")?)?;
    let mut layer = Layer::default();
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        layer.folder(dir)?;
    }
    layer.file("bin/busybox", 0o755, &program)?;
    for applet in APPLETS {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    layer.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    Image::of(vec![layer], &json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]}))
}

impl Image {
    /// An image of these layers, lowest first; `config` is the `config` object of the OCI image configuration.
    ///
    /// # Errors
    /// Compressing a layer failed.
    pub fn of(layers: Vec<Layer>, config: &serde_json::Value) -> Result<Image> {
        let mut diff_ids = Vec::new();
        let mut blobs = Vec::new();
        for layer in layers {
            let tar = layer.tar.into_inner()?;
            diff_ids.push(digest(&tar));
            let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
            gzip.write_all(&tar)?;
            blobs.push(Blob::of(gzip.finish()?));
        }
        let config = Blob::of(serde_json::to_vec(&json!({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))?);
        let describe = |media_type: &str, blob: &Blob| json!({"mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len()});
        let manifest = Blob::of(serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": blobs.iter().map(|blob| describe("application/vnd.oci.image.layer.v1.tar+gzip", blob)).collect::<Vec<_>>(),
        }))?);
        Ok(Image { manifest, config, layers: blobs })
    }

    /// The image as an OCI archive in which it has `name`.
    ///
    /// # Errors
    /// The archive does not take a path.
    pub fn archive(&self, name: &str) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes)
        };
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": MANIFEST, "digest": self.manifest.digest, "size": self.manifest.bytes.len(),
            "annotations": {"io.containerd.image.name": name},
        }]});
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", index.to_string().as_bytes())?;
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            add(&format!("blobs/{}", blob.digest.replace(':', "/")), &blob.bytes)?;
        }
        Ok(tar.into_inner()?)
    }
}

impl Image {
    /// The same layers, said to be for another machine.
    ///
    /// # Errors
    /// Its configuration is no JSON.
    pub fn for_another_platform(mut self) -> Result<Image> {
        let mut config: serde_json::Value = serde_json::from_slice(&self.config.bytes)?;
        config["architecture"] = "riscv64".into();
        let mut layer = Layer::default();
        layer.file("other", 0o644, b"other")?;
        let other = Image::of(vec![layer], &json!({}))?;
        config["rootfs"] = serde_json::from_slice::<serde_json::Value>(&other.config.bytes)?["rootfs"].clone();
        self.layers = other.layers;
        self.config = Blob::of(serde_json::to_vec(&config)?);
        let mut manifest: serde_json::Value = serde_json::from_slice(&other.manifest.bytes)?;
        manifest["config"]["digest"] = self.config.digest.clone().into();
        manifest["config"]["size"] = self.config.bytes.len().into();
        self.manifest = Blob::of(serde_json::to_vec(&manifest)?);
        Ok(self)
    }
}

/// The media type of [`Image::manifest`].
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// This machine's architecture in the words of OCI images.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A layer that is being written: entries in the order given, owned by root, at the epoch.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Layer {
        Layer { tar: tar::Builder::new(Vec::new()) }
    }
}

impl Layer {
    /// # Errors
    /// The path does not fit a tar header.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        self.entry(tar::EntryType::Directory, 0o755, &format!("{path}/"), &[])
    }

    /// # Errors
    /// The path does not fit a tar header.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.entry(tar::EntryType::Regular, mode, path, bytes)
    }

    /// # Errors
    /// The path or the target does not fit a tar header.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        Ok(self.tar.append_link(&mut header, path, to)?)
    }

    fn entry(&mut self, kind: tar::EntryType, mode: u32, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = header(kind, mode, bytes.len());
        Ok(self.tar.append_data(&mut header, path, bytes)?)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}
