//! Values of D-Bus and their bytes.
//!
//! Source: D-Bus Specification, "Type System" and "Marshaling (Wire Format)".

/// A value with its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Str(String),
    Path(String),
    Signature(String),
    /// The signature of its elements, which an empty one has too.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    pub fn str(text: impl Into<String>) -> Value {
        Value::Str(text.into())
    }

    pub fn variant(value: Value) -> Value {
        Value::Variant(Box::new(value))
    }

    pub fn bytes(bytes: &[u8]) -> Value {
        Value::Array("y".into(), bytes.iter().map(|byte| Value::Byte(*byte)).collect())
    }

    /// The text of a string, an object's path or a signature.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) | Value::Path(text) | Value::Signature(text) => Some(text),
            Value::Variant(value) => value.as_str(),
            _ => None,
        }
    }

    pub fn signature(&self) -> String {
        match self {
            Value::Byte(_) => "y".into(),
            Value::Bool(_) => "b".into(),
            Value::I16(_) => "n".into(),
            Value::U16(_) => "q".into(),
            Value::I32(_) => "i".into(),
            Value::U32(_) => "u".into(),
            Value::I64(_) => "x".into(),
            Value::U64(_) => "t".into(),
            Value::Double(_) => "d".into(),
            Value::Str(_) => "s".into(),
            Value::Path(_) => "o".into(),
            Value::Signature(_) => "g".into(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Struct(fields) => format!("({})", fields.iter().map(Value::signature).collect::<String>()),
            Value::Variant(_) => "v".into(),
        }
    }

    /// Appends its bytes, little end first. `out` begins at a multiple of eight.
    pub fn encode(&self, out: &mut Vec<u8>) {
        pad(out, alignment(self.signature().as_bytes()[0]));
        match self {
            Value::Byte(byte) => out.push(*byte),
            Value::Bool(yes) => out.extend(u32::from(*yes).to_le_bytes()),
            Value::I16(number) => out.extend(number.to_le_bytes()),
            Value::U16(number) => out.extend(number.to_le_bytes()),
            Value::I32(number) => out.extend(number.to_le_bytes()),
            Value::U32(number) => out.extend(number.to_le_bytes()),
            Value::I64(number) => out.extend(number.to_le_bytes()),
            Value::U64(number) => out.extend(number.to_le_bytes()),
            Value::Double(number) => out.extend(number.to_le_bytes()),
            Value::Str(text) | Value::Path(text) => {
                out.extend(length(text.len()).to_le_bytes());
                out.extend(text.as_bytes());
                out.push(0);
            }
            Value::Signature(text) => encode_signature(text, out),
            Value::Array(element, values) => {
                let at = out.len();
                out.extend([0; 4]);
                pad(out, alignment(element.as_bytes()[0])); // does not count as the array's
                let begin = out.len();
                values.iter().for_each(|value| value.encode(out));
                let bytes = length(out.len() - begin).to_le_bytes();
                out[at..at + 4].copy_from_slice(&bytes);
            }
            Value::Struct(fields) => fields.iter().for_each(|field| field.encode(out)),
            Value::Variant(value) => {
                encode_signature(&value.signature(), out);
                value.encode(out);
            }
        }
    }
}

fn encode_signature(text: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX)); // ours have a few letters
    out.extend(text.as_bytes());
    out.push(0);
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX) // the other side refuses a message of gigabytes
}

pub fn pad(out: &mut Vec<u8>, alignment: usize) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}

fn alignment(kind: u8) -> usize {
    match kind {
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b's' | b'o' | b'a' => 4,
        b'x' | b't' | b'd' | b'(' => 8,
        _ => 1,
    }
}

/// Reads values of `signature`, of which `bytes` begins at a multiple of eight. None if they are not that.
pub fn decode(signature: &str, bytes: &[u8]) -> Option<Vec<Value>> {
    let mut reader = Reader { bytes, at: 0 };
    let mut rest = signature.as_bytes();
    let mut values = Vec::new();
    while !rest.is_empty() {
        let (kind, behind) = split(rest)?;
        values.push(reader.value(kind, 0)?);
        rest = behind;
    }
    Some(values)
}

/// The first complete type of a signature, and what follows it.
fn split(signature: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut open = 0;
    for (at, letter) in signature.iter().enumerate() {
        match letter {
            b'a' => continue,
            b'(' | b'{' => open += 1,
            b')' | b'}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(signature.split_at(at + 1));
        }
    }
    None
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        (self.take(1)? == [0]).then_some(text)
    }

    fn value(&mut self, kind: &[u8], depth: usize) -> Option<Value> {
        const DEEPEST: usize = 32; // arrays and structs each may nest as deep, "Valid Signatures"
        let first = *kind.first().filter(|_| depth <= DEEPEST)?;
        self.at = self.at.next_multiple_of(alignment(if first == b'{' { b'(' } else { first }));
        Some(match first {
            b'y' => Value::Byte(u8::from_le_bytes(self.number()?)),
            b'b' => Value::Bool(u32::from_le_bytes(self.number()?) != 0),
            b'n' => Value::I16(i16::from_le_bytes(self.number()?)),
            b'q' => Value::U16(u16::from_le_bytes(self.number()?)),
            b'i' => Value::I32(i32::from_le_bytes(self.number()?)),
            b'u' | b'h' => Value::U32(u32::from_le_bytes(self.number()?)),
            b'x' => Value::I64(i64::from_le_bytes(self.number()?)),
            b't' => Value::U64(u64::from_le_bytes(self.number()?)),
            b'd' => Value::Double(f64::from_le_bytes(self.number()?)),
            b's' | b'o' => {
                let length = u32::from_le_bytes(self.number()?) as usize;
                let text = self.text(length)?;
                if first == b's' { Value::Str(text) } else { Value::Path(text) }
            }
            b'g' => Value::Signature(self.signature()?),
            b'v' => {
                let inner = self.signature()?;
                let (kind, behind) = split(inner.as_bytes())?;
                let value = self.value(kind, depth + 1)?;
                if !behind.is_empty() {
                    return None;
                }
                Value::variant(value)
            }
            b'a' => {
                let element = kind.get(1..)?;
                let length = u32::from_le_bytes(self.number()?) as usize;
                let first = *element.first()?;
                self.at = self.at.next_multiple_of(alignment(if first == b'{' { b'(' } else { first }));
                let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
                let mut values = Vec::new();
                while self.at < end {
                    values.push(self.value(element, depth + 1)?);
                }
                Value::Array(String::from_utf8(element.to_vec()).ok()?, values)
            }
            b'(' | b'{' => {
                let mut rest = kind.get(1..kind.len() - 1).filter(|fields| !fields.is_empty())?; // an empty one is no type
                let mut fields = Vec::new();
                while !rest.is_empty() {
                    let (kind, behind) = split(rest)?;
                    fields.push(self.value(kind, depth + 1)?);
                    rest = behind;
                }
                Value::Struct(fields)
            }
            _ => return None,
        })
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(u8::from_le_bytes(self.number()?));
        self.text(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Value {
        Value::Struct(vec![
            Value::Byte(1),
            Value::Bool(true),
            Value::I16(-2),
            Value::U16(3),
            Value::I32(-4),
            Value::U32(5),
            Value::I64(-6),
            Value::U64(u64::MAX),
            Value::Double(0.5),
            Value::str("text"),
            Value::Path("/a/b".into()),
            Value::Signature("a(sv)".into()),
            Value::Array("s".into(), Vec::new()),
            Value::Array("(ss)".into(), vec![Value::Struct(vec![Value::str("x"), Value::str("")])]),
            Value::variant(Value::bytes(&[1, 2, 3])),
        ])
    }

    #[test]
    fn what_was_written_is_read_again() {
        let value = one_of_each();
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert_eq!(decode(&value.signature(), &bytes).unwrap(), [value]);
    }

    #[test]
    fn bytes_lie_where_the_specification_puts_them() {
        let mut bytes = Vec::new();
        Value::Byte(7).encode(&mut bytes);
        Value::Array("t".into(), vec![Value::U64(1)]).encode(&mut bytes);
        assert_eq!(bytes, [7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.clear();
        Value::variant(Value::str("ab")).encode(&mut bytes);
        assert_eq!(bytes, [1, b's', 0, 0, 2, 0, 0, 0, b'a', b'b', 0]);
    }

    #[test]
    fn what_is_cut_short_or_senseless_is_not_read() {
        let value = one_of_each();
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(decode(&value.signature(), &bytes[..length]), None, "{length}");
        }
        for signature in ["a", "(s", "!", "a(", ")"] {
            assert_eq!(decode(signature, &bytes), None, "{signature}");
        }
        let nested = "a".repeat(200) + "y";
        assert_eq!(decode(&nested, &[4, 0, 0, 0].repeat(300)), None);
    }
}
