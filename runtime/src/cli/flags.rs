//! The command line as runc has it, which is Go's: one dash or two before any name, `--name value` or `--name=value`,
//! `--switch` or `--switch=true`.

use crate::cli::Error;

/// A flag of a command: all its names, and whether a value follows.
pub struct Flag {
    pub names: &'static [&'static str],
    pub takes_value: bool,
}

/// A flag without a value.
pub const fn switch(names: &'static [&'static str]) -> Flag {
    Flag { names, takes_value: false }
}

/// A flag with a value.
pub const fn value(names: &'static [&'static str]) -> Flag {
    Flag { names, takes_value: true }
}

/// Where flags may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Before and after the other words.
    Anywhere,
    /// Before the first other word: the rest belongs to somebody else.
    First,
}

/// Words taken apart.
#[derive(Debug, Default)]
pub struct Parsed {
    given: Vec<(&'static str, String)>,
    pub words: Vec<String>,
}

impl Parsed {
    /// The last value given for `name`.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.given.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// All values given for `name`, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.given.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    pub fn is_set(&self, name: &str) -> bool {
        matches!(self.value(name), Some("true" | "1" | "t" | "T" | "TRUE" | "True"))
    }

    /// The value of `name` as a number, or 0 if it was not given.
    ///
    /// # Errors
    /// It is not a number.
    pub fn number(&self, name: &str) -> Result<i32, Error> {
        let text = self.value(name).unwrap_or("0");
        text.parse().map_err(|_| Error::Usage(format!("--{name}: {text:?} is not a number")))
    }
}

/// Takes `words` apart.
///
/// # Errors
/// A flag that the command does not have, or one without its value.
pub fn parse(words: &[String], flags: &'static [Flag], order: Order) -> Result<Parsed, Error> {
    let mut parsed = Parsed::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = match word.strip_prefix('-') {
            _ if word == "--" => {
                parsed.words.extend(words.cloned());
                break;
            }
            None | Some("") => {
                parsed.words.push(word.clone());
                if order == Order::First {
                    parsed.words.extend(words.cloned());
                    break;
                }
                continue;
            }
            Some(name) => name.strip_prefix('-').unwrap_or(name),
        };
        let (name, given) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value.to_owned())));
        let Some(flag) = flags.iter().find(|flag| flag.names.contains(&name)) else {
            return Err(Error::Usage(format!("flag provided but not defined: -{name}")));
        };
        let value = match (given, flag.takes_value) {
            (Some(value), _) => value,
            (None, false) => "true".into(),
            (None, true) => {
                words.next().cloned().ok_or_else(|| Error::Usage(format!("flag needs an argument: -{name}")))?
            }
        };
        parsed.given.push((flag.names[0], value));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[value(&["bundle", "b"]), switch(&["detach", "d"]), value(&["env", "e"])];

    fn parsed(line: &str, order: Order) -> Result<Parsed, Error> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words, FLAGS, order)
    }

    #[test]
    fn one_dash_or_two_with_the_value_beside_or_behind() {
        for line in ["-b /x id", "--bundle /x id", "-bundle=/x id", "--b=/x id", "id -b /x"] {
            let parsed = parsed(line, Order::Anywhere).unwrap();
            assert_eq!(parsed.value("bundle"), Some("/x"), "{line}");
            assert_eq!(parsed.words, ["id"], "{line}");
        }
    }

    #[test]
    fn what_follows_the_first_word_of_exec_belongs_to_the_program() {
        let parsed = parsed("-d -e A=1 -e B=2 id ls -d --bundle", Order::First).unwrap();
        assert!(parsed.is_set("detach"));
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(parsed.words, ["id", "ls", "-d", "--bundle"]);
    }

    #[test]
    fn unknown_flags_and_missing_values_are_told() {
        assert_eq!(parsed("-x id", Order::Anywhere).unwrap_err().to_string(), "flag provided but not defined: -x");
        assert_eq!(parsed("id -b", Order::Anywhere).unwrap_err().to_string(), "flag needs an argument: -b");
    }
}
