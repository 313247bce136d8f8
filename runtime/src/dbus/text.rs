//! Values as people write them: GVariant's text, of which annotations hold `uint64 5`, `'text'`, `true`, `@as []`.
//!
//! Source: GLib manual, "GVariant Text Format"; dictionaries, tuples, maybes and doubles are not read.

use super::Value;

/// Reads a whole text. None if it is not a value, or of a kind that is not read.
pub fn read(text: &str) -> Option<Value> {
    let mut rest = text.trim();
    let value = value(&mut rest, None)?;
    rest.trim().is_empty().then_some(value)
}

/// The words before a number and the letters of their types.
const TYPES: &[(&str, &str)] = &[
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("string", "s"),
    ("objectpath", "o"),
    ("signature", "g"),
];

fn value(rest: &mut &str, kind: Option<&str>) -> Option<Value> {
    *rest = rest.trim_start();
    if let Some(typed) = rest.strip_prefix('@') {
        let (signature, behind) = typed.split_once(' ')?;
        *rest = behind;
        return value(rest, Some(signature));
    }
    if let Some((_, letter, behind)) = TYPES.iter().find_map(|(word, letter)| {
        Some((word, letter, rest.strip_prefix(word).filter(|behind| behind.starts_with(' '))?))
    }) {
        *rest = behind;
        return value(rest, Some(letter));
    }
    match rest.chars().next()? {
        '[' => array(rest, kind),
        '\'' | '"' => text(rest, kind.unwrap_or("s")),
        _ => word(rest, kind),
    }
}

fn array(rest: &mut &str, kind: Option<&str>) -> Option<Value> {
    let mut element = match kind {
        Some(kind) => Some(kind.strip_prefix('a')?.to_owned()),
        None => None,
    };
    let mut values = Vec::new();
    *rest = rest[1..].trim_start();
    while !rest.starts_with(']') {
        let next = value(rest, element.as_deref())?;
        let signature = next.signature();
        if element.get_or_insert_with(|| signature.clone()) != &signature {
            return None;
        }
        values.push(next);
        *rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(behind) => *rest = behind.trim_start(),
            None if rest.starts_with(']') => {}
            None => return None,
        }
    }
    *rest = &rest[1..];
    Some(Value::Array(element?, values)) // of an empty one nobody else says the type
}

fn text(rest: &mut &str, kind: &str) -> Option<Value> {
    let mut letters = rest.char_indices();
    let (_, quote) = letters.next()?;
    let mut text = String::new();
    loop {
        match letters.next()? {
            (at, letter) if letter == quote => {
                *rest = &rest[at + letter.len_utf8()..];
                break;
            }
            (_, '\\') => text.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                letter @ ('\\' | '\'' | '"') => letter,
                _ => return None,
            }),
            (_, letter) => text.push(letter),
        }
    }
    match kind {
        "s" => Some(Value::Str(text)),
        "o" => Some(Value::Path(text)),
        "g" => Some(Value::Signature(text)),
        _ => None,
    }
}

/// `true`, `false`, or a number, which is an `int32` if nothing else is said.
fn word(rest: &mut &str, kind: Option<&str>) -> Option<Value> {
    let end = rest.find([',', ']', ' ']).unwrap_or(rest.len());
    let (word, behind) = rest.split_at(end);
    *rest = behind;
    if let (Ok(yes), None | Some("b")) = (word.parse::<bool>(), kind) {
        return Some(Value::Bool(yes));
    }
    let hexadecimal = word.strip_prefix("0x").map(|digits| i128::from_str_radix(digits, 16));
    let number = hexadecimal.unwrap_or_else(|| word.parse::<i128>()).ok()?;
    Some(match kind.unwrap_or("i") {
        "y" => Value::Byte(number.try_into().ok()?),
        "n" => Value::I16(number.try_into().ok()?),
        "q" => Value::U16(number.try_into().ok()?),
        "i" => Value::I32(number.try_into().ok()?),
        "u" => Value::U32(number.try_into().ok()?),
        "x" => Value::I64(number.try_into().ok()?),
        "t" => Value::U64(number.try_into().ok()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_the_value_that_glib_reads() {
        for (text, value) in [
            ("true", Value::Bool(true)),
            ("5", Value::I32(5)),
            ("uint64 123456789", Value::U64(123_456_789)),
            ("byte 0xff", Value::Byte(255)),
            ("'inactive-or-failed'", Value::str("inactive-or-failed")),
            (r#""it's""#, Value::str("it's")),
            (r"'it\'s'", Value::str("it's")),
            ("@as []", Value::Array("s".into(), Vec::new())),
            ("['a', 'b']", Value::Array("s".into(), vec![Value::str("a"), Value::str("b")])),
            ("[uint32 1, 2]", Value::Array("u".into(), vec![Value::U32(1), Value::U32(2)])),
            ("@ay [1,2]", Value::bytes(&[1, 2])),
            ("objectpath '/a'", Value::Path("/a".into())),
        ] {
            assert_eq!(read(text), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_none() {
        let texts = [
            "",
            "word",
            "[]",
            "'open",
            "uint32 -1",
            "byte 256",
            "[1, 'a']",
            "1 2",
            "{'a': 1}",
            "uint32 'a'",
            "[1",
            "@",
        ];
        for text in texts {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
