//! Makes inputs of others: bytes changed, cut, repeated and spliced; in JSON, values swapped for ones that hurt.

use serde_json::Value;

/// Random numbers that follow from a seed: xorshift64*.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        number as usize % sides.max(1)
    }

    fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

/// An input that is like one of the corpus, and not quite.
pub fn mutate(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let base = dice.one_of(corpus).clone();
    let changes = 1 + dice.roll(6);
    if dice.roll(4) > 0
        && let Ok(mut value) = serde_json::from_slice::<Value>(&base)
    {
        for _ in 0..changes {
            let other = serde_json::from_slice(dice.one_of::<Vec<u8>>(corpus)).unwrap_or(Value::Null);
            change_json(&mut value, &other, dice);
        }
        return value.to_string().into_bytes();
    }
    let mut bytes = base;
    for _ in 0..changes {
        let other: &Vec<u8> = dice.one_of(corpus);
        change_bytes(&mut bytes, other, dice);
    }
    bytes
}

fn change_bytes(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let at = dice.roll(bytes.len() + 1);
    let length = dice.roll(64).min(bytes.len() - at);
    match dice.roll(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
        1 if at < bytes.len() => bytes[at] = *dice.one_of(&[0, 1, b'"', b'\\', b'{', b'/', 0x7f, 0x80, 0xff]),
        2 => drop(bytes.drain(at..at + length)),
        3 => {
            let piece = bytes[at..at + length].to_vec();
            bytes.splice(at..at, piece);
        }
        4 => {
            let from = dice.roll(other.len() + 1);
            let piece = &other[from..other.len().min(from + 1 + dice.roll(64))];
            bytes.splice(at..at + length, piece.iter().copied());
        }
        5 => bytes.truncate(at),
        _ => {
            let word = *dice.one_of(WORDS);
            bytes.splice(at..at, word.bytes());
        }
    }
}

/// Changes one place of `value`, with pieces of `other`.
fn change_json(value: &mut Value, other: &Value, dice: &mut Dice) {
    let places = count(value);
    let place = nth(value, &mut dice.roll(places));
    let Some(place) = place else { return };
    match (dice.roll(8), &mut *place) {
        (0, Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(dice.roll(map.len())).cloned().unwrap_or_default();
            map.remove(&key);
        }
        (0, Value::Array(list)) if !list.is_empty() => drop(list.remove(dice.roll(list.len()))),
        (1, Value::Array(list)) if !list.is_empty() => {
            let again = list[dice.roll(list.len())].clone();
            // Now and then very many.
            let times = if dice.roll(20) == 0 { 2000 } else { 1 };
            list.extend(std::iter::repeat_n(again, times));
        }
        (2, Value::Array(list)) if list.len() > 1 => {
            let (a, b) = (dice.roll(list.len()), dice.roll(list.len()));
            list.swap(a, b);
        }
        (3 | 4, place) => {
            let mut from = other.clone();
            let places = count(&from);
            if let Some(piece) = nth(&mut from, &mut dice.roll(places)) {
                *place = piece.take();
            }
        }
        (5, Value::String(text)) => {
            let at = (0..=dice.roll(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let word: &&str = dice.one_of(WORDS);
            text.insert_str(at, word);
        }
        (6, Value::Number(number)) => {
            let near = number.as_i64().unwrap_or(0).wrapping_add(dice.roll(3) as i64 - 1);
            *place = near.into();
        }
        (_, place) => *place = hurtful(dice),
    }
}

fn hurtful(dice: &mut Dice) -> Value {
    match dice.roll(6) {
        0 => Value::Null,
        1 => dice.one_of(&[-1, 0, 1, i64::MIN, i64::MAX, 1 << 31, 1 << 32, -(1 << 31) - 1, 65_536]).to_owned().into(),
        2 => u64::MAX.into(),
        3 => (dice.roll(2) == 0).into(),
        4 => Value::Array(Vec::new()),
        _ => (*dice.one_of(WORDS)).into(),
    }
}

/// Texts that have hurt somebody.
const WORDS: &[&str] = &[
    "",
    "/",
    ".",
    "..",
    "../..",
    "/..",
    "//",
    "\0",
    "\n",
    "\u{1b}[2J",
    "%s",
    "\u{202e}",
    "é",
    "/proc/self/exe",
    "/proc/self/fd/7",
    "/dev/null",
    "/dev",
    "=",
    "=x",
    "PATH=",
    ",",
    "0-4294967295",
    "-1",
    "4294967296",
    "18446744073709551616",
    "1e999",
    "null",
    "SCMP_ACT_NOTIFY",
    "SCMP_CMP_MASKED_EQ",
    "write",
    "bind",
    "rbind",
    "ro",
    "idmap",
    "tmpcopyup",
    "remount",
    "unified",
    "mount",
    "user",
    "cgroup",
    "proc",
    "sysfs",
    "net.ipv4.ip_forward",
    "kernel.shmmax",
    "RLIMIT_NOFILE",
    "CAP_SYS_ADMIN",
    "{",
    "[[[[[[[[",
];

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The node that is reached after `left` others.
fn nth<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|child| nth(child, left)),
        Value::Object(map) => map.values_mut().find_map(|child| nth(child, left)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let corpus = [b"{\"a\":[1,\"two\",{\"b\":null}]}".to_vec(), b"not json".to_vec()];
        let inputs = |seed| {
            let mut dice = Dice::new(seed);
            (0..200).map(|_| mutate(&corpus, &mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
    }

    #[test]
    fn every_place_of_a_document_can_be_reached() {
        let mut value = serde_json::json!({"a": [1, {"b": 2}], "c": "d"});
        let places = count(&value);
        assert_eq!(places, 6);
        assert!((0..places).all(|at| nth(&mut value, &mut at.clone()).is_some()));
        assert!(nth(&mut value, &mut places.clone()).is_none());
    }
}
