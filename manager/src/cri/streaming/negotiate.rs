//! Which protocol both sides speak: the first one of the client's list that we know, as Go's servers choose.

use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderMap, UPGRADE};

use super::websocket::Coding;

pub const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// SPDY in the messages of a WebSocket.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

const REMOTE_SPDY: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const REMOTE_WEBSOCKET: &[&str] =
    &["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];
const FORWARD_SPDY: &[&str] = &["portforward.k8s.io"];
const FORWARD_WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// Empty names are those of clients that name none: the oldest form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    Spdy { name: String },
    WebSocket { name: String },
}

/// # Errors
/// What to answer: it is no upgrade, or there is no protocol that both speak.
pub fn protocol(headers: &HeaderMap, forwards: bool) -> Result<Protocol, (StatusCode, String)> {
    let bad = |why: &str| (StatusCode::BAD_REQUEST, why.to_owned());
    if !tokens(headers, CONNECTION.as_str()).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return Err(bad("unable to upgrade: missing upgrade headers in request"));
    }
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    match upgrade.as_str() {
        "spdy/3.1" => {
            let known = if forwards { FORWARD_SPDY } else { REMOTE_SPDY };
            Ok(Protocol::Spdy { name: choose(headers, STREAM_PROTOCOL, known)? })
        }
        "websocket" => {
            if headers.get("sec-websocket-version").is_none_or(|version| version != "13") {
                return Err(bad("unable to upgrade: WebSocket version 13 is spoken"));
            }
            if headers.get("sec-websocket-key").is_none() {
                return Err(bad("unable to upgrade: there is no Sec-WebSocket-Key"));
            }
            let known = if forwards { FORWARD_WEBSOCKET } else { REMOTE_WEBSOCKET };
            Ok(Protocol::WebSocket { name: choose(headers, "sec-websocket-protocol", known)? })
        }
        _ => Err(bad("unable to upgrade: SPDY/3.1 and websocket are spoken")),
    }
}

/// How a WebSocket of this name carries bytes.
pub fn coding(name: &str) -> Coding {
    if name.contains("base64.") { Coding::Base64 } else { Coding::Binary }
}

fn choose(headers: &HeaderMap, header: &str, known: &[&str]) -> Result<String, (StatusCode, String)> {
    let mut asked = tokens(headers, header).peekable();
    if asked.peek().is_none() {
        return Ok(String::new());
    }
    asked
        .find(|name| known.contains(name))
        .map(str::to_owned)
        .ok_or_else(|| (StatusCode::FORBIDDEN, format!("unable to upgrade: the protocols are {}", known.join(", "))))
}

fn tokens<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(headers: &[(&'static str, &'static str)], forwards: bool) -> Result<Protocol, u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        protocol(&map, forwards).map_err(|(status, _)| status.as_u16())
    }

    #[test]
    fn the_clients_first_choice_that_is_known_is_spoken() {
        let spdy = [("connection", "keep-alive, Upgrade"), ("upgrade", "SPDY/3.1")];
        let with = |more: &[(&'static str, &'static str)]| ask(&[&spdy[..], more].concat(), false);
        let name = |name: &str| Ok(Protocol::Spdy { name: name.into() });
        assert_eq!(with(&[]), name(""));
        let two = [(STREAM_PROTOCOL, "v9.channel.k8s.io"), (STREAM_PROTOCOL, "v4.channel.k8s.io, channel.k8s.io")];
        assert_eq!(with(&two), name("v4.channel.k8s.io"));
        assert_eq!(with(&[(STREAM_PROTOCOL, "v9.channel.k8s.io")]), Err(403));

        let websocket = [("connection", "upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-version", "13")];
        assert_eq!(ask(&websocket, true), Err(400));
        let key = [("sec-websocket-key", "k"), ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io")];
        assert_eq!(ask(&[&websocket[..], &key].concat(), true), Ok(Protocol::WebSocket { name: TUNNEL.into() }));
        assert_eq!(ask(&[&websocket[..], &key].concat(), false), Err(403));
        assert_eq!(ask(&[("upgrade", "SPDY/3.1")], false), Err(400));
        assert_eq!(ask(&[("connection", "upgrade"), ("upgrade", "h2c")], false), Err(400));
    }
}
