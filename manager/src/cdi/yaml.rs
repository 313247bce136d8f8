//! YAML as the JSON that it stands for. Plain words are read as YAML 1.1 does where that is older (`0640` is octal), since
//! such are the files of vendors. References to other parts of a document are refused.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Value};

/// Nobody nests so deep.
const DEEPEST: usize = 64;

/// The first document of a text.
///
/// # Errors
/// It is no YAML, or has what files of settings do not.
pub fn read(text: &str) -> Result<Value, String> {
    let mut events = Parser::new_from_str(text);
    loop {
        match next(&mut events)? {
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => {}
            Event::StreamEnd => return Ok(Value::Null),
            first => return node(first, &mut events, DEEPEST),
        }
    }
}

fn next<'t>(events: &mut impl Iterator<Item = Result<(Event<'t>, Span), ScanError>>) -> Result<Event<'t>, String> {
    match events.next() {
        Some(Ok((event, _))) => Ok(event),
        Some(Err(error)) => Err(error.to_string()),
        None => Ok(Event::StreamEnd),
    }
}

fn node<'t>(
    first: Event<'t>,
    events: &mut impl Iterator<Item = Result<(Event<'t>, Span), ScanError>>,
    depth: usize,
) -> Result<Value, String> {
    if depth == 0 {
        return Err(format!("it is nested deeper than {DEEPEST}"));
    }
    match first {
        Event::Scalar(text, ScalarStyle::Plain, ..) => Ok(plain(&text)),
        Event::Scalar(text, ..) => Ok(Value::String(text.into_owned())),
        Event::SequenceStart(..) => {
            let mut all = Vec::new();
            loop {
                match next(events)? {
                    Event::SequenceEnd => return Ok(Value::Array(all)),
                    item => all.push(node(item, events, depth - 1)?),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut all = Map::new();
            loop {
                let key = match next(events)? {
                    Event::MappingEnd => return Ok(Value::Object(all)),
                    Event::Scalar(key, ..) => key.into_owned(),
                    _ => return Err("a key is more than a word".into()),
                };
                let first = next(events)?;
                let value = node(first, events, depth - 1)?;
                if all.insert(key.clone(), value).is_some() {
                    return Err(format!("the key {key:?} is there twice"));
                }
            }
        }
        Event::Alias(_) => Err("references to other parts of it are not supported".into()),
        _ => Err("it ends too early".into()),
    }
}

fn plain(text: &str) -> Value {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok();
    let octal = digits.strip_prefix("0o").or(digits.strip_prefix('0').filter(|rest| !rest.is_empty()));
    let number = match (digits.strip_prefix("0x"), octal) {
        (Some(hex), _) => radix(hex, 16),
        (None, Some(octal)) => radix(octal, 8),
        (None, None) if digits.starts_with(|c: char| c.is_ascii_digit()) => radix(digits, 10),
        _ => None,
    };
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => match number {
            Some(number) => Value::from(if text.starts_with('-') { -number } else { number }),
            None => Value::String(text.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_is_read_as_the_json_that_it_stands_for() {
        let text = "# c\na: [1, -2, 0x10, 0640, 0o17, 08]\nb:\n  - x: 'true'\n    y: true\n  - ~\nc: 0.6.0\nd: |\n  two\n  lines\ne: {}\n";
        let value = json!({
            "a": [1, -2, 16, 0o640, 15, "08"], "b": [{"x": "true", "y": true}, null], "c": "0.6.0",
            "d": "two\nlines\n", "e": {},
        });
        assert_eq!(read(text).unwrap(), value);
        assert_eq!(read("{\"json\": [\"is\", \"yaml\"]}").unwrap(), json!({"json": ["is", "yaml"]}));
        assert_eq!(read("").unwrap(), Value::Null);
        for bad in ["a: 1\na: 2", "a: &x 1\nb: *x", "a: [1", "? [a]\n: 1", &"[".repeat(100)] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
