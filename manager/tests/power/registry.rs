//! A registry with one image of two layers, on a thread that ends with the test's process.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::json;
use tare_manager::names::Digest;
use tare_manager::transfer::Platform;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub struct Registry(u16);

impl Registry {
    pub fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(image());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let answers = answers.clone();
                // Whoever is killed closes its connection in the middle; that is no concern of the registry's.
                std::thread::spawn(move || serve(socket, &answers).ok());
            }
        });
        Registry(port)
    }

    pub fn reference(&self) -> String {
        format!("127.0.0.1:{}/img:latest", self.0)
    }
}

fn serve(mut socket: TcpStream, answers: &HashMap<String, Vec<u8>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(socket.try_clone()?).lines();
    while let Some(request) = lines.next() {
        let request = request?;
        for line in lines.by_ref() {
            if line?.is_empty() {
                break;
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, body) = match answers.get(path.trim_start_matches("/v2/img/")) {
            Some(body) => ("200 OK", body.as_slice()),
            None => ("404 Not Found", &[][..]),
        };
        let length = body.len();
        write!(socket, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\ncontent-type: {MANIFEST}\r\n\r\n")?;
        if method != "HEAD" {
            socket.write_all(body)?;
        }
    }
    Ok(())
}

/// Answers by path.
fn image() -> HashMap<String, Vec<u8>> {
    let (lower, upper) = (lower(), upper());
    let packed = [&lower, &upper].map(|tar| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(tar).unwrap();
        gzip.finish().unwrap()
    });
    let diff_ids = [&lower, &upper].map(|tar| Digest::of(tar).to_string());
    let config = json!({
        "architecture": Platform::own().architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let layers: Vec<_> = packed.iter().map(|layer| describe("layer.v1.tar+gzip", layer)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": describe("config.v1+json", &config), "layers": layers});
    let manifest = manifest.to_string().into_bytes();
    let mut answers = HashMap::from([("manifests/latest".to_owned(), manifest.clone())]);
    for blob in packed.into_iter().chain([config, manifest]) {
        answers.insert(format!("blobs/{}", Digest::of(&blob)), blob);
    }
    answers
}

fn lower() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, tar::EntryType::Directory, "etc/", 0o755, b"");
    add(&mut tar, tar::EntryType::Regular, "etc/config", 0o640, b"old\n");
    add(&mut tar, tar::EntryType::Regular, "etc/other", 0o644, &b"0123456789abcdef".repeat(3000));
    add(&mut tar, tar::EntryType::Directory, "data/", 0o1777, b"");
    add(&mut tar, tar::EntryType::Regular, "data/old", 0o4755, b"x");
    for (kind, path, target) in
        [(tar::EntryType::Symlink, "link", "etc/config"), (tar::EntryType::Link, "hard", "etc/other")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, path, target).unwrap();
    }
    tar.into_inner().unwrap()
}

/// With a removal and a folder that hides what is below it.
fn upper() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, tar::EntryType::Regular, "etc/.wh.config", 0o644, b"");
    add(&mut tar, tar::EntryType::Directory, "data/", 0o755, b"");
    add(&mut tar, tar::EntryType::Regular, "data/.wh..wh..opq", 0o644, b"");
    add(&mut tar, tar::EntryType::Regular, "data/new", 0o600, b"new\n");
    tar.into_inner().unwrap()
}

fn add(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_uid(7);
    tar.append_data(&mut header, path, bytes).unwrap();
}
