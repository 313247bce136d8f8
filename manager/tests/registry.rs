//! Registries that lie, cut off and mislead: one clear error each, nothing left behind, and the next pull works.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tare_manager::content::Content;
use tare_manager::names::{Digest, Labels, Namespace};
use tare_manager::snapshot::{OVERLAY, Snapshots};
use tare_manager::store::Store;
use tare_manager::transfer::{Platform, Puller, Request};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What is answered to a path.
#[derive(Clone)]
struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    cut: Option<usize>,
}

impl Answer {
    fn ok(body: impl Into<Vec<u8>>) -> Answer {
        Answer { status: "200 OK", headers: Vec::new(), body: body.into(), cut: None }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }
}

/// A registry that answers as it is told, on a thread of its own that ends with the test's process.
struct Registry {
    port: u16,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    /// Request lines and headers, as they came.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry =
            Registry { port: listener.local_addr().unwrap().port(), answers: Arc::default(), seen: Arc::default() };
        let (answers, seen) = (registry.answers.clone(), registry.seen.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (answers, seen) = (answers.clone(), seen.clone());
                std::thread::spawn(move || serve(socket, &answers, &seen));
            }
        });
        registry
    }

    fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(format!("/v2/img/{path}"), answer);
    }

    fn reference(&self) -> String {
        format!("127.0.0.1:{}/img:latest", self.port)
    }

    /// Serves an image of one layer; gives the layer's digest.
    fn good_image(&self) -> Digest {
        self.image_of(1)
    }

    /// Serves an image that has the same layer so many times.
    fn image_of(&self, times: usize) -> Digest {
        let layer = layer();
        let config = json!({"architecture": Platform::own().architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": vec![Digest::of(&layer).as_str(); times]}});
        let config = serde_json::to_vec(&config).unwrap();
        let describe = |bytes: &[u8]| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(bytes).as_str(), "size": bytes.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": describe(&config), "layers": vec![describe(&layer); times]});
        self.answer("manifests/latest", Answer::ok(manifest.to_string()).header("content-type", MANIFEST));
        self.answer(&format!("blobs/{}", Digest::of(&config)), Answer::ok(config));
        let digest = Digest::of(&layer);
        self.answer(&format!("blobs/{digest}"), Answer::ok(layer));
        digest
    }
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let body = vec![7; 100_000];
    let mut header = tar::Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", body.as_slice()).unwrap();
    tar.into_inner().unwrap()
}

fn serve(socket: TcpStream, answers: &Mutex<HashMap<String, Answer>>, seen: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok);
    let mut socket = socket;
    while let Some(first) = lines.next() {
        let headers: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        seen.lock().unwrap().push(format!("{first}\n{}", headers.join("\n")));
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let missing = Answer { status: "404 Not Found", headers: Vec::new(), body: Vec::new(), cut: None };
        let mut answer = answers.lock().unwrap().get(&path).cloned().unwrap_or(missing);
        let range = headers.iter().find_map(|line| {
            line.to_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        if let Some(from) = range {
            let total = answer.body.len();
            answer.body.drain(..from);
            answer.status = "206 Partial Content";
            answer.headers.push(("content-range", format!("bytes {from}-{}/{total}", total - 1)));
        }
        let mut head = format!("HTTP/1.1 {}\r\n", answer.status);
        if !answer.headers.iter().any(|(name, _)| *name == "content-length") {
            head += &format!("content-length: {}\r\n", answer.body.len());
        }
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let sent = answer.cut.map_or(answer.body.as_slice(), |cut| &answer.body[..cut.min(answer.body.len())]);
        let written = socket.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| socket.write_all(sent));
        if written.is_err() || answer.cut.is_some() {
            return; // closes the connection
        }
    }
}

struct Node {
    puller: Puller,
    registry: Registry,
    namespace: Namespace,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let content = Content::open(dir.path(), store.clone()).unwrap();
        let snapshots = Snapshots::open(dir.path(), store.clone()).unwrap();
        let puller = Puller { store, content, snapshots };
        Node { puller, registry: Registry::start(), namespace: Namespace::parse("test").unwrap(), _dir: dir }
    }

    async fn pull(&self) -> Result<(), String> {
        let request = Request {
            reference: self.registry.reference(),
            name: "img".into(),
            labels: Labels::new(),
            platform: Platform::own(),
            scheme: None,
            unpack: true,
        };
        let (progress, _) = tokio::sync::mpsc::channel(1);
        self.puller.pull(&self.namespace, &request, progress).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Pulls from a registry that misbehaves: the error says so, nothing that could be taken for a layer is left, and the
    /// same pull works once the registry behaves.
    async fn refuses(&self, expected: &str) {
        let error = self.pull().await.expect_err(expected);
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert!(
            self.puller.snapshots.list(&self.namespace, OVERLAY).unwrap().is_empty(),
            "{expected}: a snapshot is left"
        );
        let layer = self.registry.good_image();
        assert!(self.puller.content.info(&self.namespace, &layer).is_err(), "{expected}: the layer is left");
        self.pull().await.unwrap();
        assert_eq!(self.puller.snapshots.list(&self.namespace, OVERLAY).unwrap().len(), 1);
        assert!(self.puller.content.statuses(&self.namespace).unwrap().is_empty(), "{expected}: a write is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_other_bytes_than_its_digest_is_thrown_away() {
    let node = Node::start();
    let layer = node.registry.good_image();
    let mut other = self::layer();
    other[50_000] ^= 1;
    node.registry.answer(&format!("blobs/{layer}"), Answer::ok(other));
    node.refuses("as the configuration says").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_a_lie_is_told() {
    let node = Node::start();
    let layer = node.registry.good_image();
    let mut longer = self::layer();
    longer.extend([0; 4096]);
    node.registry.answer(&format!("blobs/{layer}"), Answer::ok(longer));
    node.refuses("as the manifest says").await;

    let node = Node::start();
    let layer = node.registry.good_image();
    node.registry.answer(&format!("blobs/{layer}"), Answer::ok(self::layer()[..60_000].to_vec()));
    node.refuses("ended at byte 60000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_goes_on_at_its_byte_and_gives_up_in_the_end() {
    let node = Node::start();
    let layer = node.registry.good_image();
    let whole = self::layer();
    let cut = Answer { cut: Some(30_000), ..Answer::ok(whole.clone()) };
    node.registry.answer(&format!("blobs/{layer}"), cut.clone());
    node.pull().await.unwrap(); // four pieces of 30 000 bytes are more than it has
    let ranges = node
        .registry
        .seen
        .lock()
        .unwrap()
        .iter()
        .filter(|request| request.to_lowercase().contains("range: bytes="))
        .count();
    assert!(ranges >= 3, "{ranges} requests for the rest");

    let node = Node::start();
    let layer = node.registry.good_image();
    node.registry.answer(&format!("blobs/{layer}"), Answer { cut: Some(1000), ..Answer::ok(whole) });
    node.refuses("reading").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_two_things_at_once_is_refused() {
    let node = Node::start();
    node.registry.good_image();
    let digest = Digest::of(b"x").to_string();
    let both = json!({"manifests": [], "config": {"digest": digest, "size": 1}, "layers": []});
    node.registry.answer("manifests/latest", Answer::ok(both.to_string()).header("content-type", INDEX));
    node.refuses("neither an index nor a manifest, or both at once").await;

    let node = Node::start();
    node.registry.good_image();
    let says_index = json!({"mediaType": INDEX, "config": {"digest": digest, "size": 1}, "layers": []});
    node.registry.answer("manifests/latest", Answer::ok(says_index.to_string()).header("content-type", MANIFEST));
    node.refuses("says that it is").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_oversized_documents_are_refused() {
    for (body, expected) in [
        (b"{".to_vec(), "reading a manifest"),
        (vec![b' '; (4 << 20) + 1], "longer than"),
        (b"{\"config\":{\"digest\":\"sha256:../..\",\"size\":1},\"layers\":[]}".to_vec(), "invalid checksum digest"),
    ] {
        let node = Node::start();
        node.registry.good_image();
        node.registry.answer("manifests/latest", Answer::ok(body).header("content-type", MANIFEST));
        node.refuses(expected).await;
    }
    let node = Node::start();
    node.registry.good_image();
    let other = Digest::of(b"other").to_string();
    node.registry.answer(
        "manifests/latest",
        Answer::ok("{}").header("content-type", MANIFEST).header("docker-content-digest", other),
    );
    node.refuses("its digest is").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_follows_a_redirect_and_loops_end() {
    let node = Node::start();
    let layer = node.registry.good_image();
    let elsewhere = Registry::start();
    elsewhere.answer("layer", Answer::ok(self::layer()));
    let moved = |to: String| Answer { status: "307 Temporary Redirect", ..Answer::ok("") }.header("location", to);
    node.registry.answer(&format!("blobs/{layer}"), moved(format!("http://127.0.0.1:{}/v2/img/layer", elsewhere.port)));
    let realm = format!("Bearer realm=\"http://127.0.0.1:{}/v2/img/token\",service=\"s\"", node.registry.port);
    node.registry.answer("token?service=s", Answer::ok("{\"token\":\"secret\"}"));
    let locked = Answer { status: "401 Unauthorized", ..Answer::ok("") }.header("www-authenticate", realm);
    let manifest = node.registry.answers.lock().unwrap()["/v2/img/manifests/latest"].clone();
    node.registry.answer("manifests/latest", locked);
    let error = node.pull().await.unwrap_err();
    assert!(error.contains("denied"), "the registry refuses the token too: {error}");
    node.registry.answer("manifests/latest", manifest);
    node.pull().await.unwrap();
    let seen = elsewhere.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].to_lowercase().contains("authorization"), "{}", seen[0]);

    let node = Node::start();
    let layer = node.registry.good_image();
    node.registry.answer(&format!("blobs/{layer}"), moved(format!("/v2/img/blobs/{layer}")));
    node.refuses("redirects").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_does_not_have_is_not_found() {
    let node = Node::start();
    assert!(node.pull().await.unwrap_err().contains("not found"));
    let layer = node.registry.good_image();
    node.registry.answers.lock().unwrap().remove(&format!("/v2/img/blobs/{layer}"));
    node.refuses("not found").await;
}

/// As images have it that were built by steps that change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_wanted_several_times_at_once_is_fetched_once() {
    let node = Node::start();
    let layer = node.registry.image_of(3);
    let (one, two) = tokio::join!(node.pull(), node.pull());
    one.unwrap();
    two.unwrap();
    let path = format!("/blobs/{layer} ");
    let fetched = node.registry.seen.lock().unwrap().iter().filter(|request| request.contains(&path)).count();
    assert_eq!(fetched, 1);
    assert_eq!(node.puller.snapshots.list(&node.namespace, OVERLAY).unwrap().len(), 3);
}
