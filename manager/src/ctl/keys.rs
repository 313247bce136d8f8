//! The keys that leave a container running: `ctrl-p,ctrl-q` unless told otherwise.

/// A sequence, and how much of it was typed.
#[derive(Clone, Debug)]
pub struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

impl Default for DetachKeys {
    fn default() -> DetachKeys {
        DetachKeys { keys: vec![0x10, 0x11], typed: 0 }
    }
}

impl std::str::FromStr for DetachKeys {
    type Err = String;

    /// Reads characters and `ctrl-` with one of `a` to `z`, `@`, `[`, `\`, `]`, `^` and `_`, with commas between.
    fn from_str(text: &str) -> Result<DetachKeys, String> {
        if text.is_empty() {
            return Ok(DetachKeys::default());
        }
        let key = |word: &str| match (word.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
            (Some([letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')]), _) => Ok(letter & 0x1f),
            (None, [byte]) => Ok(*byte),
            _ => Err(format!("unknown key {word:?}")),
        };
        Ok(DetachKeys { keys: text.split(',').map(key).collect::<Result<_, _>>()?, typed: 0 })
    }
}

impl DetachKeys {
    /// Takes what was typed; gives what of it is for the container, and whether the sequence is complete.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if *byte != self.keys[self.typed] {
                passed.extend_from_slice(&self.keys[..self.typed]); // it was meant for the container after all
                self.typed = 0;
            }
            if *byte == self.keys[self.typed] {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    self.typed = 0;
                    return (passed, true);
                }
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_found_across_pieces_and_nothing_else_is_lost() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.take(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.take(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.take(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.take(b"\x11rest"), (Vec::new(), true));
    }

    #[test]
    fn keys_are_spelt_as_in_docker() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.keys);
        assert_eq!(keys("ctrl-a,x,ctrl-\\"), Ok(vec![1, b'x', 0x1c]));
        assert_eq!(keys(""), Ok(vec![0x10, 0x11]));
        for bad in ["ctrl-", "ctrl-1", "xy", "a,,b"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }
}
