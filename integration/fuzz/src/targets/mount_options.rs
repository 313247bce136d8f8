//! Options of a mount, separated by commas: each word has an effect, goes to the file system, or is refused by itself.

use tare_runtime::mount::options::Options;

pub fn try_input(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    match Options::read(&words) {
        Ok(options) => {
            // No attribute is both set and cleared, but the access times, which are one field: mount_setattr(2).
            const ATIME: u64 = 0x70;
            for attributes in [options.here, options.below] {
                assert_eq!(attributes.set & attributes.clear & !ATIME, 0, "{attributes:?} of {words:?}");
            }
            assert!(options.data.len() <= words.len());
        }
        Err(word) => assert!(words.iter().any(|known| known == word), "{word:?} is none of {words:?}"),
    }
}
