//! The time as logs have it: RFC 3339 to the nanosecond, in UTC.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-24T12:00:00.000000001Z`: always 30 bytes, so that lines align.
pub type Text = [u8; 30];

pub fn now() -> Text {
    text(SystemTime::now())
}

fn text(time: SystemTime) -> Text {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default(); // a clock that is not set yet
    let (days, seconds) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = date(days);
    let mut text = [b'0'; 30];
    let written = write!(
        text.as_mut_slice(),
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    );
    debug_assert!(written.is_ok(), "years have four digits");
    text
}

/// Year, month and day, counted in eras of 400 years that begin in March: then the odd day comes last.
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468; // from the first of March of the year 0
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153; // from March on
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year_of_era, if month < 10 { month + 3 } else { month - 9 });
    (year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_that_date_prints() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000000000Z"),
            (1_795_521_600, 120_000_000, "2026-11-24T12:00:00.120000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
            assert_eq!(std::str::from_utf8(&text(time)).unwrap(), expected);
        }
    }
}
