//! The block that every entry of an archive begins with, and the records that say what does not fit into it.
//!
//! Source: POSIX pax(1), "ustar Interchange Format" and "pax Header Block"; tar(5), "Numeric Values".

use std::ops::Range;

pub const BLOCK: usize = 512;
pub type Block = [u8; BLOCK];

pub const NAME: Range<usize> = 0..100;
pub const MODE: Range<usize> = 100..108;
pub const UID: Range<usize> = 108..116;
pub const GID: Range<usize> = 116..124;
pub const SIZE: Range<usize> = 124..136;
pub const MTIME: Range<usize> = 136..148;
pub const CHECKSUM: Range<usize> = 148..156;
pub const TYPE: usize = 156;
pub const LINK: Range<usize> = 157..257;
pub const MAGIC: Range<usize> = 257..265;
pub const MAJOR: Range<usize> = 329..337;
pub const MINOR: Range<usize> = 337..345;
pub const PREFIX: Range<usize> = 345..500;

/// `ustar` and its version, as POSIX has it.
pub const POSIX: &[u8; 8] = b"ustar\x0000";
/// As GNU tar writes it in its own format, where what POSIX calls the prefix holds other things.
pub const GNU: &[u8; 8] = b"ustar  \0";

/// A field's text: to its first NUL, or all of it.
pub fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A field's number: octal, or binary if its first bit is set. An empty field means 0: every reader takes it so.
pub fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Two's complement, big endian; the first bit only says that it is.
        let mut value: i128 = i128::from(field[0] & 0x7f);
        if field[0] & 0x40 != 0 {
            value -= 0x80;
        }
        for byte in &field[1..] {
            value = (value << 8) | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let digits = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if digits.is_empty() {
        return Some(0);
    }
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None; // a sign, which only some readers know
    }
    i64::from_str_radix(digits, 8).ok()
}

/// The sum that the block must say it has. Old writers added signed bytes.
pub fn checks(block: &Block) -> bool {
    let said = number(&block[CHECKSUM]);
    let bytes = || block.iter().enumerate().map(|(at, byte)| if CHECKSUM.contains(&at) { b' ' } else { *byte });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    said == Some(unsigned) || said == Some(signed)
}

/// Writes a number in octal, if it fits.
pub fn put_number(block: &mut Block, field: Range<usize>, value: u64) -> bool {
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    let fits = digits.len() < field.len();
    if fits {
        block[field.start..field.end - 1].copy_from_slice(digits.as_bytes());
    }
    fits
}

/// Writes the beginning of a text; whether it was all of it.
pub fn put_text(block: &mut Block, field: Range<usize>, value: &[u8]) -> bool {
    let length = value.len().min(field.len());
    block[field.start..field.start + length].copy_from_slice(&value[..length]);
    length == value.len()
}

/// Writes the sum, when all else is written.
pub fn seal(block: &mut Block) {
    block[CHECKSUM].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let text = format!("{sum:06o}\0 ");
    block[CHECKSUM].copy_from_slice(text.as_bytes());
}

/// Records as pax writes them: each says its own length first, so that a value may hold any byte.
pub fn records(mut bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
        if !bytes[..space].iter().all(u8::is_ascii_digit) {
            return None;
        }
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?;
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        if equals == 0 {
            return None;
        }
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Some(records)
}

/// Adds a record.
pub fn put_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3; // the space, the equals sign and the end of the line
    let mut length = rest;
    // The length counts its own digits.
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_nothing_else() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000009\0", None),
            (b"-000001\0", None),
            (b"+000001\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn a_record_holds_any_bytes_and_counts_its_own_length() {
        let mut written = Vec::new();
        let values: [&[u8]; 4] = [b"\n=1 x\n\0", b"", &[b'a'; 93], &[b'b'; 994]];
        for value in values {
            put_record(&mut written, b"key", value);
        }
        let read = records(&written).unwrap();
        assert!(read.iter().zip(values).all(|((key, read), value)| key == b"key" && read == value));
        for bad in [&b"5 a=b"[..], b"99 a=b\n", b"6 ab \n", b"x a=b\n", b"7 a=bc", b"0 a=b\n", b"5 =b\n"] {
            assert_eq!(records(bad), None, "{bad:?}");
        }
    }
}
