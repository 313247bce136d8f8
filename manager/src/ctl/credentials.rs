//! Names and passwords for registries, where docker keeps them: `config.json`, and helpers that it names.
//!
//! Source: docker's `config.json` and the protocol of `docker-credential-…`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tare_proto::any;
use tare_proto::containerd::types::transfer as types;

use super::client::Client;
use super::stream;

/// docker's own name for its hub.
const HUB: &str = "https://index.docker.io/v1/";
/// Instead of a name, with an identity token.
const TOKEN: &str = "<token>";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub secret: String,
}

#[derive(clap::Args)]
pub struct LoginArgs {
    #[arg(short, long)]
    username: Option<String>,
    /// Better from standard input: other users see a command line
    #[arg(short, long)]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// The registry; docker's hub if there is none
    server: Option<String>,
}

#[derive(clap::Args)]
pub struct LogoutArgs {
    /// The registry; docker's hub if there is none
    server: Option<String>,
}

/// Answers the daemon's questions as long as a transfer lasts; gives the stream's name.
pub async fn answer(client: &Client) -> Result<String> {
    let mut stream = stream::open(client, "auth").await?;
    let id = stream.id.clone();
    tokio::spawn(async move {
        while let Ok(Some(message)) = stream.from_daemon.message().await {
            let Ok(Some(asked)) = any::unpack::<types::AuthRequest>(&message, "containerd.types.transfer.AuthRequest")
            else {
                continue;
            };
            let found = find(&asked.host).unwrap_or_else(|error| {
                eprintln!("tarectl: {error:#}");
                None
            });
            let said = match found {
                Some(Login { username, secret }) if username == TOKEN => {
                    types::AuthResponse { auth_type: types::AuthType::Refresh.into(), secret, ..Default::default() }
                }
                Some(Login { username, secret }) => types::AuthResponse {
                    auth_type: types::AuthType::Credentials.into(),
                    username,
                    secret,
                    ..Default::default()
                },
                None => types::AuthResponse::default(),
            };
            let said = any::pack("containerd.types.transfer.AuthResponse", &said);
            if stream.to_daemon.send(said).await.is_err() {
                return;
            }
        }
    });
    Ok(id)
}

/// What is known for a registry: its own helper's word, the file's, or the general helper's.
pub fn find(host: &str) -> Result<Option<Login>> {
    let config = read()?;
    for name in names(host) {
        if let Some(helper) = config["credHelpers"][&name].as_str() {
            return ask(helper, &name);
        }
    }
    for name in names(host) {
        let entry = &config["auths"][&name];
        if let Some(login) = stored(entry) {
            return Ok(Some(login));
        }
    }
    match config["credsStore"].as_str() {
        Some(helper) => {
            for name in names(host) {
                if let Some(login) = ask(helper, &name)? {
                    return Ok(Some(login));
                }
            }
            Ok(None)
        }
        None => Ok(None),
    }
}

/// A registry's names in the file.
fn names(host: &str) -> Vec<String> {
    let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&host);
    let own = [
        host.to_owned(),
        format!("https://{host}"),
        format!("http://{host}"),
        format!("https://{host}/v2/"),
        format!("https://{host}/v1/"),
    ];
    if hub { [HUB.to_owned()].into_iter().chain(own).collect() } else { own.into() }
}

fn stored(entry: &Value) -> Option<Login> {
    if let Some(token) = entry["identitytoken"].as_str().filter(|token| !token.is_empty()) {
        return Some(Login { username: TOKEN.into(), secret: token.to_owned() });
    }
    let text = BASE64_STANDARD.decode(entry["auth"].as_str()?).ok()?;
    let text = String::from_utf8(text).ok()?;
    let (username, secret) = text.trim_end_matches('\0').split_once(':')?;
    Some(Login { username: username.to_owned(), secret: secret.to_owned() })
}

fn path() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("DOCKER_CONFIG") {
        return Ok(PathBuf::from(folder).join("config.json"));
    }
    let home = std::env::var_os("HOME").context("neither DOCKER_CONFIG nor HOME is set")?;
    Ok(PathBuf::from(home).join(".docker/config.json"))
}

fn read() -> Result<Value> {
    let path = path()?;
    match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(json!({})),
        text => {
            let text = text.with_context(|| format!("reading {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
        }
    }
}

fn write(config: &Value) -> Result<()> {
    let path = path()?;
    let aside = path.with_extension("json.new");
    let folder = path.parent().context("the configuration is in no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let write = || -> Result<()> {
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec_pretty(config)?)?;
        fs::rename(&aside, &path)?;
        Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Asks `docker-credential-HELPER`.
fn ask(helper: &str, host: &str) -> Result<Option<Login>> {
    let out = call(helper, "get", host)?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stdout).to_lowercase();
        ensure!(said.contains("credentials not found"), "docker-credential-{helper} get {host}: {}", said.trim());
        return Ok(None);
    }
    let answer: Value =
        serde_json::from_slice(&out.stdout).with_context(|| format!("reading docker-credential-{helper}'s answer"))?;
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    Ok(Some(Login { username: text("Username"), secret: text("Secret") }))
}

fn call(helper: &str, verb: &str, input: &str) -> Result<std::process::Output> {
    let program = format!("docker-credential-{helper}");
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("running {program}"))?;
    }
    child.wait_with_output().with_context(|| format!("running {program}"))
}

/// Keeps a name and a password for a registry. They are tried when they are needed.
pub fn login(args: &LoginArgs) -> Result<i32> {
    let server = args.server.as_deref().unwrap_or(HUB);
    let username = args.username.clone().context("--username is missing")?;
    let password = match (&args.password, args.password_stdin) {
        (Some(password), _) => password.clone(),
        (None, true) => {
            let text = std::io::read_to_string(std::io::stdin()).context("reading the password")?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        (None, false) => bail!("--password-stdin is missing"),
    };
    ensure!(!username.is_empty() && !username.contains(':'), "--username {username:?}: is empty or has a colon");
    ensure!(!password.is_empty(), "the password is empty");
    let mut config = read()?;
    let helper = config["credHelpers"][server].as_str().or(config["credsStore"].as_str()).map(str::to_owned);
    if let Some(helper) = helper {
        let input = json!({"ServerURL": server, "Username": username, "Secret": password}).to_string();
        let out = call(&helper, "store", &input)?;
        let said = String::from_utf8_lossy(&out.stdout);
        ensure!(out.status.success(), "docker-credential-{helper} store: {}", said.trim());
        config["auths"][server] = json!({});
    } else {
        config["auths"][server] = json!({"auth": BASE64_STANDARD.encode(format!("{username}:{password}"))});
    }
    write(&config)?;
    println!("Login for {server} kept in {}", path()?.display());
    Ok(0)
}

pub fn logout(args: &LogoutArgs) -> Result<i32> {
    let server = args.server.as_deref().unwrap_or(HUB);
    let mut config = read()?;
    let helper = config["credHelpers"][server].as_str().or(config["credsStore"].as_str()).map(str::to_owned);
    let known = config["auths"].as_object_mut().and_then(|auths| auths.remove(server)).is_some();
    if let Some(helper) = helper {
        call(&helper, "erase", server)?;
    } else if !known {
        println!("Not logged in to {server}");
        return Ok(0);
    }
    write(&config)?;
    println!("Removed the login for {server}");
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_docker_s_file_is_a_login() {
        let auth = BASE64_STANDARD.encode("me:se:cret");
        let login = stored(&json!({ "auth": auth })).unwrap();
        assert_eq!((login.username.as_str(), login.secret.as_str()), ("me", "se:cret"));
        let token = stored(&json!({"auth": auth, "identitytoken": "t"})).unwrap();
        assert_eq!((token.username.as_str(), token.secret.as_str()), (TOKEN, "t"));
        for entry in [json!(null), json!({}), json!({"auth": "!"}), json!({"auth": BASE64_STANDARD.encode("no colon")})]
        {
            assert_eq!(stored(&entry), None);
        }
        assert_eq!(names("docker.io")[0], HUB);
        assert_eq!(names("reg:5000")[0], "reg:5000");
    }
}
