//! `--format`: as much of Go's templates as people use with docker.
//!
//! Text, `{{.Field.Of.Field}}`, `{{json …}}`, `{{index … "key"}}`, `{{join … ","}}`, `{{len …}}`, `{{upper …}}`,
//! `{{lower …}}`, `{{println …}}`, `{{range …}}…{{end}}` and `{{if …}}…{{else}}…{{end}}`; `\t` and `\n` in text. What else
//! Go has is refused.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Vec<String>),
    Range(Vec<String>, Vec<Node>),
    If(Vec<String>, Vec<Node>, Vec<Node>),
}

#[derive(Debug)]
pub struct Template(Vec<Node>);

impl Template {
    /// # Errors
    /// What is wrong with the template.
    pub fn parse(text: &str) -> Result<Template> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut rest = text.as_str();
        let (nodes, end) = block(&mut rest).with_context(|| format!("--format {text}"))?;
        ensure!(end.is_none(), "--format {text}: {{{{{}}}}} has no beginning", end.unwrap_or_default());
        Ok(Template(nodes))
    }

    /// # Errors
    /// There is no such field.
    pub fn render(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        render(&self.0, value, &mut out)?;
        Ok(out)
    }
}

/// Nodes up to the end, or up to `{{end}}` or `{{else}}`, which is returned.
fn block(rest: &mut &str) -> Result<(Vec<Node>, Option<String>)> {
    let mut nodes = Vec::new();
    loop {
        let Some(at) = rest.find("{{") else {
            nodes.push(Node::Text((*rest).to_owned()));
            *rest = "";
            return Ok((nodes, None));
        };
        let (text, action) = rest.split_at(at);
        let end = action.find("}}").context("{{ without }}")?;
        let (action, after) = (&action[2..end], &action[end + 2..]);
        let (trim_left, action) = action.strip_prefix("- ").map_or((false, action), |action| (true, action));
        let (trim_right, action) = action.strip_suffix(" -").map_or((false, action), |action| (true, action));
        nodes.push(Node::Text(if trim_left { text.trim_end() } else { text }.to_owned()));
        *rest = if trim_right { after.trim_start() } else { after };
        let mut words = words(action)?;
        match words.first().map(String::as_str) {
            None => bail!("{{{{}}}} is empty"),
            Some(word @ ("end" | "else")) => return Ok((nodes, Some(word.to_owned()))),
            Some("range") => {
                words.remove(0);
                let (body, end) = block(rest)?;
                ensure!(end.as_deref() == Some("end"), "{{{{range}}}} without {{{{end}}}}");
                nodes.push(Node::Range(words, body));
            }
            Some("if") => {
                words.remove(0);
                let (then, end) = block(rest)?;
                let (otherwise, end) = if end.as_deref() == Some("else") { block(rest)? } else { (Vec::new(), end) };
                ensure!(end.as_deref() == Some("end"), "{{{{if}}}} without {{{{end}}}}");
                nodes.push(Node::If(words, then, otherwise));
            }
            _ => nodes.push(Node::Print(words)),
        }
    }
}

/// The words of an action; a text in quotes is one, with its first quote.
fn words(action: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = action.trim();
    while let Some(first) = rest.chars().next() {
        let end = if first == '"' {
            let end = rest[1..].find('"').context("a text without its end")?;
            words.push(rest[..=end].to_owned());
            end + 2
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            ensure!(!rest[..end].starts_with(['$', '(', '|']), "{} is not supported", &rest[..end]);
            words.push(rest[..end].to_owned());
            end
        };
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

fn render(nodes: &[Node], value: &Value, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(words) => out.push_str(&call(words, value)?),
            Node::Range(words, body) => match field(words, value)? {
                Value::Array(list) => list.iter().try_for_each(|each| render(body, each, out))?,
                Value::Object(map) => map.values().try_for_each(|each| render(body, each, out))?,
                Value::Null => {}
                _ => bail!("range over {}: is no list", words.join(" ")),
            },
            Node::If(words, then, otherwise) => {
                let chosen = if is_set(field(words, value)?) { then } else { otherwise };
                render(chosen, value, out)?;
            }
        }
    }
    Ok(())
}

/// Go's notion of what is not empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn call(words: &[String], value: &Value) -> Result<String> {
    let (name, arguments) = words.split_first().context("{{}} is empty")?;
    if name.starts_with(['.', '"']) {
        return Ok(show(field(words, value)?));
    }
    let text = |at: usize| {
        let word = arguments.get(at).and_then(|word| word.strip_prefix('"'));
        word.with_context(|| format!("{name} needs a text"))
    };
    let first = arguments.get(..1).unwrap_or_default();
    Ok(match name.as_str() {
        "json" => serde_json::to_string(field(first, value)?)?,
        "println" => show(field(first, value)?) + "\n",
        "upper" => show(field(first, value)?).to_uppercase(),
        "lower" => show(field(first, value)?).to_lowercase(),
        "len" => match field(first, value)? {
            Value::Array(list) => list.len().to_string(),
            Value::Object(map) => map.len().to_string(),
            other => show(other).len().to_string(),
        },
        "join" => {
            let list = field(first, value)?.as_array().context("join needs a list")?;
            list.iter().map(show).collect::<Vec<_>>().join(text(1)?)
        }
        "index" => match field(first, value)? {
            Value::Array(list) => {
                let at: usize = arguments.get(1).and_then(|at| at.parse().ok()).context("index needs a number")?;
                show(list.get(at).with_context(|| format!("index {at} is out of range"))?)
            }
            other => show(other.get(text(1)?).unwrap_or(&Value::Null)),
        },
        other => bail!("--format: {other} is not supported"),
    })
}

/// The value that `.` or `.A.B` names.
fn field<'v>(words: &[String], value: &'v Value) -> Result<&'v Value> {
    let [path] = words else { bail!("--format: {} is not supported", words.join(" ")) };
    let names = path.strip_prefix('.').with_context(|| format!("--format: {path} is not supported"))?;
    let mut value = value;
    for name in names.split('.').filter(|name| !name.is_empty()) {
        value = value.get(name).with_context(|| format!("--format: there is no field {path}"))?;
    }
    Ok(value)
}

/// As Go prints it.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", show(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_are_filled_as_go_fills_them() {
        let value = json!({"Name": "web", "State": {"Pid": 7, "Running": true}, "List": ["a", "b"], "Map": {"k.x": "v"}, "No": []});
        for (template, expected) in [
            ("plain", "plain"),
            ("{{.Name}}\\t{{ .State.Pid }}", "web\t7"),
            ("{{json .State}}", r#"{"Pid":7,"Running":true}"#),
            ("{{json .}}", &value.to_string()),
            ("{{.List}} {{.Map}}", "[a b] map[k.x:v]"),
            ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
            ("{{if .No}}yes{{else}}no{{end}}{{if .State.Running}}!{{end}}", "no!"),
            ("{{index .Map \"k.x\"}} {{index .List 1}} {{join .List \", \"}}", "v b a, b"),
            ("{{upper .Name}} {{len .List}} a {{- .Name -}} b", "WEB 2 awebb"),
        ] {
            assert_eq!(Template::parse(template).unwrap().render(&value).unwrap(), expected, "{template}");
        }
        for bad in ["{{.Name", "{{range .List}}", "{{end}}", "{{}}", "{{$x}}", "{{with .Name}}{{end}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
        for bad in ["{{.None}}", "{{frob .Name}}", "{{range .Name}}{{end}}", "{{index .List 9}}"] {
            assert!(Template::parse(bad).unwrap().render(&value).is_err(), "{bad}");
        }
    }
}
