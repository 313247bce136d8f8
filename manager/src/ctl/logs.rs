//! `tarectl logs`.

use std::time::SystemTime;

use anyhow::{Context as _, Result};

use super::client::Client;
use super::container::{self, Folder};
use super::log::read::{Own, Part, Reader};

#[derive(clap::Args)]
pub struct Args {
    /// Go on as more is printed, until the container has ended
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end, or all
    #[arg(short = 'n', long, value_name = "LINES", value_parser = tail, default_value = "all")]
    tail: Tail,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Only what came since then: a time such as 2026-01-02T03:04:05Z, or 10m for ten minutes ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Only what came before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    container: String,
}

/// As many lines, or all.
type Tail = Lines;

#[derive(Clone, Copy, Debug)]
pub struct Lines(Option<u64>);

fn tail(text: &str) -> Result<Lines, String> {
    match text {
        "all" | "-1" => Ok(Lines(None)),
        text => text.parse().map(|lines| Lines(Some(lines))).map_err(|_| "neither a number nor all".into()),
    }
}

pub fn time(text: &str) -> Result<SystemTime, String> {
    let seconds = || text.parse::<f64>().ok().filter(|seconds| (0.0..1e11).contains(seconds));
    if let Ok(ago) = humantime::parse_duration(text)
        && text.ends_with(char::is_alphabetic)
    {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "is too long ago".to_owned());
    }
    if let Some(seconds) = seconds() {
        return Ok(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs_f64(seconds));
    }
    let day = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    humantime::parse_rfc3339_weak(&day).map_err(|_| "neither a time nor a duration".to_owned())
}

pub async fn logs(client: &Client, args: &Args) -> Result<i32> {
    let container = container::find(client, &args.container).await?;
    let id = &container.id;
    container
        .labels
        .get(container::LOG)
        .with_context(|| format!("container {id} was not made by tarectl: it has no log here"))?;
    let log = Folder::of(client, id).await?.log();
    let part = Part { tail: args.tail.0, since: args.since, until: args.until, timestamps: args.timestamps };
    let mut reader = match Reader::open(&log, part) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0), // it was never started
        reader => reader.with_context(|| format!("opening {}", log.display()))?,
    };
    let shown = if args.follow { reader.follow(&mut Own) } else { reader.show(&mut Own) };
    match shown {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0), // such as `| head`
        shown => shown.map(|()| 0).with_context(|| format!("reading {}", log.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_docker_reads_them() {
        let at = |text: &str| time(text).map(|at| humantime::format_rfc3339(at).to_string());
        assert_eq!(at("2026-01-02T03:04:05Z").as_deref(), Ok("2026-01-02T03:04:05Z"));
        assert_eq!(at("2026-01-02").as_deref(), Ok("2026-01-02T00:00:00Z"));
        assert_eq!(at("0").as_deref(), Ok("1970-01-01T00:00:00Z"));
        let ago = SystemTime::now().duration_since(time("1h30m").unwrap()).unwrap().as_secs();
        assert!((5399..5460).contains(&ago), "{ago}");
        for bad in ["", "yesterday", "-1", "2026"] {
            assert!(time(bad).is_err() || bad == "2026", "{bad}");
        }
    }
}
