//! containerd's filters: `name==x,labels."a.b"~=^y`. Several strings are alternatives, commas join conditions.
//!
//! Source: containerd pkg/filters.

use crate::error::{Error, Result};

/// Conditions that must all hold.
#[derive(Debug)]
struct Conditions(Vec<Selector>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(regex::Regex),
}

/// Alternatives; none at all let everything pass.
#[derive(Debug)]
pub struct Filter(Vec<Conditions>);

impl Filter {
    /// # Errors
    /// `InvalidArgument`, with the filter that cannot be read.
    pub fn parse(texts: &[String]) -> Result<Filter> {
        texts
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| Parser { rest: text, text }.filter())
            .collect::<Result<_>>()
            .map(Filter)
    }

    /// Whether something passes; `field` looks up its fields.
    pub fn matches(&self, field: impl Fn(&[String]) -> Option<String>) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.0.iter().all(|selector| selector.holds(&field)))
    }
}

impl Selector {
    fn holds(&self, field: &impl Fn(&[String]) -> Option<String>) -> bool {
        let value = field(&self.path);
        match &self.test {
            Test::Present => value.is_some_and(|value| !value.is_empty()),
            Test::Equal(expected) => value.as_deref() == Some(expected),
            Test::NotEqual(expected) => value.as_deref() != Some(expected),
            Test::Matches(regex) => value.is_some_and(|value| regex.is_match(&value)),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    text: &'a str,
}

impl Parser<'_> {
    fn wrong(&self) -> Error {
        Error::InvalidArgument(format!("parsing filter {:?}: unexpected {:?}", self.text, self.rest))
    }

    fn filter(mut self) -> Result<Conditions> {
        let mut selectors = vec![self.selector()?];
        while let Some(rest) = self.rest.strip_prefix(',') {
            self.rest = rest.trim_start();
            selectors.push(self.selector()?);
        }
        if self.rest.is_empty() { Ok(Conditions(selectors)) } else { Err(self.wrong()) }
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            path.push(self.field()?);
        }
        let test = if let Some(rest) = self.rest.strip_prefix("==") {
            self.rest = rest;
            Test::Equal(self.value()?)
        } else if let Some(rest) = self.rest.strip_prefix("!=") {
            self.rest = rest;
            Test::NotEqual(self.value()?)
        } else if let Some(rest) = self.rest.strip_prefix("~=") {
            self.rest = rest;
            let pattern = self.value()?;
            Test::Matches(
                regex::Regex::new(&pattern)
                    .map_err(|_| Error::InvalidArgument(format!("bad regular expression {pattern:?}")))?,
            )
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        if self.rest.starts_with('"') {
            return self.quoted('"');
        }
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.wrong());
        }
        let (field, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(field.to_owned())
    }

    fn value(&mut self) -> Result<String> {
        match self.rest.chars().next() {
            Some(quote @ ('"' | '/' | '|')) => self.quoted(quote),
            _ => {
                let end = self.rest.find([',', ' ']).unwrap_or(self.rest.len());
                let (value, rest) = self.rest.split_at(end);
                self.rest = rest;
                Ok(value.to_owned())
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String> {
        let mut value = String::new();
        let mut letters = self.rest[1..].char_indices();
        while let Some((at, letter)) = letters.next() {
            match letter {
                _ if letter == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Ok(value);
                }
                '\\' => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, 't')) => value.push('\t'),
                    Some((_, escaped)) if quote == '"' || escaped == quote => value.push(escaped),
                    Some((_, escaped)) => value.extend(['\\', escaped]),
                    None => break,
                },
                letter => value.push(letter),
            }
        }
        Err(self.wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(filter: &str) -> bool {
        let filters = Filter::parse(&[filter.to_owned()]).unwrap();
        filters.matches(|path| match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["name"] => Some("web".into()),
            ["labels", "a.b"] => Some("x y".into()),
            ["labels", "empty"] => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn selectors_mean_what_they_mean_in_containerd() {
        for good in [
            "name==web",
            "name~=^w",
            "name!=db",
            "labels.\"a.b\"==\"x y\"",
            "name,labels.\"a.b\"",
            "name==web, name~=w",
            "other!=1",
            "name~=/w.b/",
            r"name~=^\w[\w.-]+$",
            r#"name~="(?i)^\\w{2,3}$""#,
        ] {
            assert!(pass(good), "{good}");
        }
        for bad in ["name==db", "other", "other==1", "labels.empty", "name==web,other"] {
            assert!(!pass(bad), "{bad}");
        }
        for broken in ["==x", "name==\"x", "a..b", "name==x y", "name~=(", "-q", "labels.a-b==x", "labels.a/b"] {
            assert!(Filter::parse(&[broken.to_owned()]).is_err(), "{broken}");
        }
    }
}
