//! Registries that lie, cut off and mislead: one clear error each, nothing left behind, and the next pull works.

use std::collections::HashMap;
use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tare_manager::content::Content;
use tare_manager::names::{Digest, Namespace};
use tare_manager::registry::{Credentials, Options, Secret};
use tare_manager::snapshot::{OVERLAY, Snapshots};
use tare_manager::store::Store;
use tare_manager::transfer::{Names, Platform, Progress, Request, Transfers, Unpack};

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
    /// After so many bytes of the body, say nothing more and keep the connection.
    stall: Option<usize>,
}

impl Answer {
    fn ok(body: impl Into<Vec<u8>>) -> Answer {
        Answer { status: "200 OK", headers: Vec::new(), body: body.into(), cut: None, stall: None }
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

/// One connection over TLS, for whoever reads and whoever writes.
#[derive(Clone)]
struct Secure(std::rc::Rc<std::cell::RefCell<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>>);

impl std::io::Read for Secure {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

impl std::io::Write for Secure {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// A certificate for this machine's address, and its key.
fn identity(folder: &std::path::Path) -> rustls::ServerConfig {
    use rustls::pki_types::pem::PemObject as _;
    let (key, certificate) = (folder.join("key.pem"), folder.join("cert.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(certificate).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(key).unwrap();
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap()
}

impl Registry {
    /// One that speaks TLS.
    fn secure(config: rustls::ServerConfig) -> Registry {
        let config = Arc::new(config);
        Registry::with(move |socket, answers, seen| {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let stream = rustls::StreamOwned::new(connection, socket);
            let stream = Secure(std::rc::Rc::new(std::cell::RefCell::new(stream)));
            converse(BufReader::new(stream.clone()), stream, answers, seen);
        })
    }

    fn start() -> Registry {
        Registry::with(serve)
    }

    fn with(
        serve: impl Fn(TcpStream, &Mutex<HashMap<String, Answer>>, &Mutex<Vec<String>>) + Clone + Send + 'static,
    ) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry =
            Registry { port: listener.local_addr().unwrap().port(), answers: Arc::default(), seen: Arc::default() };
        let (answers, seen) = (registry.answers.clone(), registry.seen.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (answers, seen, serve) = (answers.clone(), seen.clone(), serve.clone());
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

    fn paths(&self) -> Vec<String> {
        let answers = self.answers.lock().unwrap();
        answers.keys().map(|path| path.trim_start_matches("/v2/img/").to_owned()).collect()
    }

    /// From now on who asks must say this.
    fn lock(&self, path: &str, challenge: &str, wants: &str) {
        let mut answers = self.answers.lock().unwrap();
        let answer = answers.entry(format!("/v2/img/{path}")).or_insert_with(|| Answer::ok(""));
        answer.status = "401 Unauthorized";
        answer.headers.retain(|(name, _)| !matches!(*name, "www-authenticate" | "x-wants"));
        answer.headers.push(("www-authenticate", challenge.to_owned()));
        answer.headers.push(("x-wants", wants.to_owned()));
    }

    fn body(&self, path: &str, body: &str) {
        self.answers.lock().unwrap().get_mut(&format!("/v2/img/{path}")).unwrap().body = body.into();
    }

    /// Serves an image of these layers, which it says to unpack to these digests.
    fn image(&self, layers: &[&[u8]], diff_ids: &[&str]) {
        let config = json!({"architecture": Platform::own().architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let describe = |bytes: &[u8]| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(bytes).as_str(), "size": bytes.len()});
        let mut described = describe(&config);
        described["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        let layers_described: Vec<_> = layers.iter().map(|layer| describe(layer)).collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers_described});
        self.answer("manifests/latest", Answer::ok(manifest.to_string()).header("content-type", MANIFEST));
        self.answer(&format!("blobs/{}", Digest::of(&config)), Answer::ok(config));
        for layer in layers {
            self.answer(&format!("blobs/{}", Digest::of(layer)), Answer::ok(layer.to_vec()));
        }
    }

    /// Serves an image of one layer; gives the layer's digest.
    fn good_image(&self) -> Digest {
        self.image_of(1)
    }

    /// Serves an image that has the same layer so many times.
    fn image_of(&self, times: usize) -> Digest {
        let layer = layer();
        let digest = Digest::of(&layer);
        self.image(&vec![layer.as_slice(); times], &vec![digest.as_str(); times]);
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
    let read = socket.try_clone().unwrap();
    converse(BufReader::new(read), socket, answers, seen);
}

fn converse(
    read: impl std::io::BufRead,
    mut write: impl std::io::Write,
    answers: &Mutex<HashMap<String, Answer>>,
    seen: &Mutex<Vec<String>>,
) {
    let mut lines = read.lines().map_while(Result::ok);
    while let Some(first) = lines.next() {
        let headers: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        seen.lock().unwrap().push(format!("{first}\n{}", headers.join("\n")));
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let missing = Answer { status: "404 Not Found", headers: Vec::new(), body: Vec::new(), cut: None, stall: None };
        let mut answer = answers.lock().unwrap().get(&path).cloned().unwrap_or(missing);
        let header = |name: &str| {
            headers.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let wanted = answer.headers.iter().find(|(name, _)| *name == "x-wants").map(|(_, value)| value.clone());
        if let Some(wanted) = wanted
            && header("authorization").as_deref() == Some(&wanted)
        {
            answer.status = "200 OK";
        } else if answer.headers.iter().any(|(name, _)| *name == "x-wants") {
            answer.body.clear();
        }
        let range =
            header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
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
        let part = answer.cut.or(answer.stall);
        let sent = part.map_or(answer.body.as_slice(), |part| &answer.body[..part.min(answer.body.len())]);
        let written = write.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| write.write_all(sent));
        let flushed = written.and_then(|()| write.flush());
        if answer.stall.is_some() {
            let _ = lines.next(); // until the other side gives up
            return;
        }
        if flushed.is_err() || answer.cut.is_some() {
            return; // closes the connection
        }
    }
}

struct Node {
    transfers: Transfers,
    content: Content,
    snapshots: Snapshots,
    options: Options,
    scheme: &'static str,
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
        Node {
            transfers: Transfers::new(store, content.clone(), snapshots.clone()),
            content,
            snapshots,
            options: Options::default(),
            scheme: "http",
            registry: Registry::start(),
            namespace: Namespace::parse("test").unwrap(),
            _dir: dir,
        }
    }

    async fn pull(&self) -> Result<(), String> {
        let request = Request {
            reference: self.registry.reference(),
            names: Names { name: "img".into(), ..Names::default() },
            platforms: vec![Platform::own()],
            unpacks: vec![Unpack { platform: Platform::own(), snapshotter: OVERLAY.into() }],
            registry: Options { scheme: Some(self.scheme.into()), ..self.options.clone() },
            ..Request::default()
        };
        let pulled = self.transfers.pull(&self.namespace, &request, &Progress::default()).await;
        pulled.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Pulls from a registry that misbehaves: the error says so, nothing that could be taken for a layer is left, and the
    /// same pull works once the registry behaves.
    async fn refuses(&self, expected: &str) {
        let error = self.pull().await.expect_err(expected);
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert!(self.snapshots.list(&self.namespace, OVERLAY).unwrap().is_empty(), "{expected}: a snapshot is left");
        let layer = self.registry.good_image();
        assert!(self.content.info(&self.namespace, &layer).is_err(), "{expected}: the layer is left");
        self.pull().await.unwrap();
        assert_eq!(self.snapshots.list(&self.namespace, OVERLAY).unwrap().len(), 1);
        assert!(self.content.statuses(&self.namespace).unwrap().is_empty(), "{expected}: a write is left");
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
async fn a_registry_that_falls_silent_is_left_and_gone_on_with_at_its_byte() {
    let mut node = Node::start();
    node.options.patience = Duration::from_secs(1);
    let layer = node.registry.good_image();
    node.registry.answer(&format!("blobs/{layer}"), Answer { stall: Some(90_000), ..Answer::ok(self::layer()) });
    node.pull().await.unwrap(); // 90 000 bytes, and then the rest

    let mut node = Node::start();
    node.options.patience = Duration::from_millis(300);
    let layer = node.registry.good_image();
    node.registry.answer(&format!("blobs/{layer}"), Answer { stall: Some(10), ..Answer::ok(self::layer()) });
    node.refuses("nothing came for").await;
}

/// A daemon that is told to end does not wait for a registry, and neither does a client that has gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_with_whoever_wanted_it() {
    let mut node = Node::start();
    let layer = node.registry.good_image();
    node.registry.answer(&format!("blobs/{layer}"), Answer { stall: Some(10), ..Answer::ok(self::layer()) });
    let (wanted, transfers) = node.transfers.wanted();
    node.transfers = transfers;
    let gone = async {
        while !node.registry.seen.lock().unwrap().iter().any(|request| request.contains("/blobs/")) {
            tokio::task::yield_now().await;
        }
        drop(wanted);
    };
    let (pulled, ()) = tokio::join!(node.pull(), gone);
    assert!(pulled.unwrap_err().contains("the transfer was cancelled"));
    let transfers = node.transfers.wanted().1;
    let ending = async {
        while node.registry.seen.lock().unwrap().iter().filter(|request| request.contains("/blobs/")).count() < 3 {
            tokio::task::yield_now().await;
        }
        transfers.end();
    };
    let (_wanted, again) = node.transfers.wanted();
    node.transfers = again;
    let (pulled, ()) = tokio::join!(node.pull(), ending);
    assert!(pulled.unwrap_err().contains("the daemon is ending"));
    assert!(node.content.statuses(&node.namespace).unwrap().is_empty());
    assert!(node.snapshots.list(&node.namespace, OVERLAY).unwrap().is_empty());
}

/// The limit is on what a layer unpacks to, and on each file before it is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_unpacks_to_more_than_the_limit_is_refused() {
    let node = Node::start();
    // A file of 64 GiB and a byte, of which the first megabytes of zeros are there: 20 KiB on the wire.
    let mut header = tar::Header::new_gnu();
    header.set_path("bomb").unwrap();
    header.set_mode(0o644);
    header.set_size((64 << 30) + 1);
    header.set_cksum();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(header.as_bytes()).unwrap();
    gzip.write_all(&vec![0; 16 << 20]).unwrap();
    let bomb = gzip.finish().unwrap();
    node.registry.image(&[&bomb], &[Digest::of(b"whatever it says").as_str()]);
    node.refuses("the layer unpacks to more than 64 GiB").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_and_a_password_go_to_the_registry_that_asks_and_to_nobody_else() {
    let mut node = Node::start();
    let layer = node.registry.good_image();
    let basic = "Basic bWU6c2VjcmV0"; // me:secret
    for path in node.registry.paths() {
        node.registry.lock(&path, "Basic realm=\"r\"", basic);
    }
    assert!(node.pull().await.unwrap_err().contains("no basic auth credentials"));
    let elsewhere = Registry::start();
    elsewhere.answer("layer", Answer::ok(self::layer()));
    let place = format!("http://127.0.0.1:{}/v2/img/layer", elsewhere.port);
    let moved = Answer { status: "302 Found", ..Answer::ok("") }.header("location", place);
    node.registry.answer(&format!("blobs/{layer}"), moved);
    let secret = Secret::Basic { username: "me".into(), password: "secret".into() };
    node.options.credentials = Credentials::Given(secret);
    node.pull().await.unwrap();
    assert!(!elsewhere.seen.lock().unwrap()[0].to_lowercase().contains("authorization"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_once_and_again_when_it_has_expired() {
    let mut node = Node::start();
    node.registry.good_image();
    let challenge = format!("Bearer realm=\"http://127.0.0.1:{}/v2/img/token\",service=\"s\"", node.registry.port);
    for path in node.registry.paths() {
        node.registry.lock(&path, &challenge, "Bearer first");
    }
    let asked = "token?service=s&scope=repository:img:pull&account=me";
    node.registry.lock(asked, "Basic realm=\"r\"", "Basic bWU6c2VjcmV0");
    node.registry.body(asked, "{\"token\":\"first\"}");
    let secret = Secret::Basic { username: "me".into(), password: "secret".into() };
    node.options.credentials = Credentials::Given(secret);
    node.pull().await.unwrap();
    let tokens = || node.registry.seen.lock().unwrap().iter().filter(|request| request.contains("/token?")).count();
    assert_eq!(tokens(), 1);

    // A refresh token is exchanged by a form.
    let mut other = Node::start();
    std::mem::swap(&mut other.registry, &mut node.registry);
    other.registry.answer("token", Answer::ok("{\"access_token\":\"first\"}"));
    other.options.credentials = Credentials::Given(Secret::Refresh("long/lived".into()));
    other.pull().await.unwrap();
    let seen = other.registry.seen.lock().unwrap().clone();
    assert!(seen.iter().any(|request| request.starts_with("POST /v2/img/token")), "{seen:?}");
}

/// Over TLS nothing is taken, and no token asked for, where anybody on the way could read along or answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_began_over_tls_does_not_go_on_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start();
    node.registry = Registry::secure(identity(folder.path()));
    node.scheme = "https";
    assert!({
        node.registry.good_image();
        node.pull().await.unwrap_err().contains("certificate")
    });
    let place = folder.path().join(format!("127.0.0.1_{}_", node.registry.port));
    std::fs::create_dir(&place).unwrap();
    std::fs::rename(folder.path().join("cert.pem"), place.join("ca.crt")).unwrap();
    node.options.hosts = Some(folder.path().to_owned());
    let layer = node.registry.good_image();
    let clear = Registry::start();
    clear.answer("layer", Answer::ok(self::layer()));
    let plain = format!("http://127.0.0.1:{}/v2/img/layer", clear.port);
    let moved = Answer { status: "307 Temporary Redirect", ..Answer::ok("") }.header("location", plain);
    node.registry.answer(&format!("blobs/{layer}"), moved);
    node.refuses("redirected from HTTPS to plain HTTP").await;

    let realm = format!("Bearer realm=\"http://127.0.0.1:{}/token\"", clear.port);
    node.registry.lock("manifests/latest", &realm, "Bearer x");
    let error = node.pull().await.unwrap_err();
    assert!(error.contains("tokens are offered over plain HTTP"), "{error}");
    assert!(clear.seen.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_before_the_registry_and_it_is_asked_for_what_they_lack() {
    let mut node = Node::start();
    let layer = node.registry.good_image();
    let mirror = Registry::start();
    mirror.good_image();
    mirror.answers.lock().unwrap().remove(&format!("/v2/img/blobs/{layer}"));
    let ns = format!("?ns=127.0.0.1:{}", node.registry.port);
    let answers: Vec<_> = mirror.answers.lock().unwrap().drain().collect();
    for (path, answer) in answers {
        mirror.answers.lock().unwrap().insert(format!("{path}{ns}"), answer);
    }
    let hosts = tempfile::tempdir().unwrap();
    let folder = hosts.path().join(format!("127.0.0.1_{}_", node.registry.port));
    std::fs::create_dir(&folder).unwrap();
    let text = format!(
        "[host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"http://127.0.0.1:{0}\".header]\nx-who = \"me\"\n",
        mirror.port
    );
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    node.options.hosts = Some(hosts.path().to_owned());
    node.pull().await.unwrap();
    let from_mirror = mirror.seen.lock().unwrap().clone();
    assert_eq!(from_mirror.len(), 3, "{from_mirror:?}");
    assert!(from_mirror.iter().all(|request| request.contains("x-who: me")), "{from_mirror:?}");
    let from_registry = node.registry.seen.lock().unwrap().clone();
    assert_eq!(from_registry.len(), 1, "{from_registry:?}");
    assert!(from_registry[0].contains("/blobs/") && !from_registry[0].contains("x-who"), "{from_registry:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_is_no_image_is_fetched_and_not_unpacked() {
    let node = Node::start();
    let (config, thing) = (b"{}".to_vec(), b"signature".to_vec());
    let describe = |bytes: &[u8], kind: &str| json!({"mediaType": kind, "digest": Digest::of(bytes).as_str(), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/example",
        "config": describe(&config, "application/vnd.oci.empty.v1+json"), "layers": [describe(&thing, "text/plain")]});
    node.registry.answer("manifests/latest", Answer::ok(manifest.to_string()).header("content-type", MANIFEST));
    for blob in [config, thing] {
        node.registry.answer(&format!("blobs/{}", Digest::of(&blob)), Answer::ok(blob));
    }
    node.pull().await.unwrap();
    assert_eq!(node.content.list(&node.namespace).unwrap().len(), 3);
    assert!(node.snapshots.list(&node.namespace, OVERLAY).unwrap().is_empty());
}

/// Of an index the wanted platform's image is fetched; of the others, with all metadata, what describes them.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_only_what_is_wanted_is_fetched() {
    let node = Node::start();
    node.registry.good_image();
    let own = node.registry.answers.lock().unwrap()["/v2/img/manifests/latest"].body.clone();
    let other = String::from_utf8(own.clone()).unwrap().replace("schemaVersion\":2", "schemaVersion\": 2").into_bytes();
    let describe = |bytes: &[u8], architecture: &str| {
        json!({"mediaType": MANIFEST, "digest": Digest::of(bytes).as_str(),
        "size": bytes.len(), "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [describe(&other, "s390x"), describe(&own, &Platform::own().architecture)]});
    for manifest in [&own, &other] {
        let path = format!("manifests/{}", Digest::of(manifest));
        node.registry.answer(&path, Answer::ok(manifest.clone()).header("content-type", MANIFEST));
    }
    node.registry.answer("manifests/latest", Answer::ok(index.to_string()).header("content-type", INDEX));
    node.pull().await.unwrap();
    let there = |digest: Digest| node.content.info(&node.namespace, &digest).is_ok();
    assert!(there(Digest::of(&own)) && !there(Digest::of(&other)));
    let top = node.content.info(&node.namespace, &Digest::of(index.to_string().as_bytes())).unwrap();
    assert_eq!(top.labels["containerd.io/gc.ref.content.m.0"], Digest::of(&other).as_str());
    assert_eq!(top.labels["containerd.io/gc.ref.content.m.1"], Digest::of(&own).as_str());
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
    node.registry.answer("token?service=s&scope=repository:img:pull", Answer::ok("{\"token\":\"secret\"}"));
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
    assert_eq!(node.snapshots.list(&node.namespace, OVERLAY).unwrap().len(), 3);
}
