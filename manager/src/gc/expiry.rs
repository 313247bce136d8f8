//! When a label says that something has expired.

use std::time::{Duration, SystemTime};

use crate::names::Labels;

const EXPIRE: &str = "containerd.io/gc.expire";

/// The label of what ends when `life` has passed.
pub fn after(life: Duration) -> (String, String) {
    (EXPIRE.into(), humantime::format_rfc3339_seconds(SystemTime::now() + life).to_string())
}

/// Whether the time that the label names has passed. What cannot be read has not.
pub fn expired(labels: &Labels) -> bool {
    labels.get(EXPIRE).and_then(|text| time(text)).is_some_and(|at| at <= SystemTime::now())
}

/// RFC 3339 with any offset: clients write their local time.
fn time(text: &str) -> Option<SystemTime> {
    let (local, offset) = match text.strip_suffix(['Z', 'z']) {
        Some(local) => (local, 0),
        None => {
            let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
            (local, seconds(offset)?)
        }
    };
    let at = humantime::parse_rfc3339_weak(local).ok()?;
    let by = Duration::from_secs(offset.unsigned_abs());
    if offset < 0 { at.checked_add(by) } else { at.checked_sub(by) }
}

/// `+02:00` or `-09:30`.
fn seconds(offset: &str) -> Option<i64> {
    let sign = match offset.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten();
    Some(sign * (number(hours)? * 3600 + number(minutes)? * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_all_zones_are_the_same_moment() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for text in [
            "2023-11-14T22:13:20Z",
            "2023-11-15T00:13:20+02:00",
            "2023-11-14T12:43:20-09:30",
            "2023-11-14T22:13:20.000Z",
        ] {
            assert_eq!(time(text), Some(moment), "{text}");
        }
        for text in ["", "soon", "2023-11-14", "2023-11-14T22:13:20", "2023-11-14T22:13:20+2:00x", "é23456"] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
