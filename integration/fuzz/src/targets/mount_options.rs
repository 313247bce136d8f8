//! Options of a mount, separated by commas: each word has an effect or goes to the file system.

use tare_runtime::mount::options::Options;

pub fn try_input(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    let options = Options::read(&words);
    // No attribute is both set and cleared, but the access times, which are one field: mount_setattr(2).
    const TIMES: u64 = 0xf0;
    for attributes in [options.here, options.below] {
        assert_eq!(attributes.set & attributes.clear & !TIMES, 0, "{attributes:?} of {words:?}");
    }
    assert!(options.data.len() <= words.len());
}
