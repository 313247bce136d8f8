//! How lists are printed: a table, JSON, or a template of the user's.

use anyhow::Result;
use serde_json::Value;

use super::template::Template;

#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub struct Show {
    /// A template such as '{{.Name}}', `json` for an object a line, or `table TEMPLATE`
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print all as JSON
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

impl Show {
    /// Prints rows; `columns` are those of the table by title and field, `fields` what templates see.
    ///
    /// # Errors
    /// The template is wrong.
    pub fn print(&self, columns: &[(&str, &str)], rows: &[Value]) -> Result<()> {
        if self.output == Output::Json {
            println!("{}", serde_json::to_string_pretty(rows)?);
            return Ok(());
        }
        match self
            .format
            .as_deref()
            .map(|format| format.strip_prefix("table ").map_or((format, false), |rest| (rest, true)))
        {
            None | Some(("table", false)) => {
                let titles = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
                let cell = |row: &Value, field: &str| {
                    row[field].as_str().map_or_else(|| row[field].to_string(), str::to_owned)
                };
                let cells = rows.iter().map(|row| columns.iter().map(|(_, field)| cell(row, field)).collect());
                table(&std::iter::once(titles).chain(cells).collect::<Vec<_>>());
            }
            Some(("json", false)) => rows.iter().for_each(|row| println!("{row}")),
            Some((template, false)) => {
                let template = Template::parse(template)?;
                for row in rows {
                    println!("{}", template.render(row)?);
                }
            }
            Some((text, true)) => {
                let template = Template::parse(text)?;
                let split = |line: String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
                let titles = titles(text, columns);
                let lines = rows.iter().map(|row| template.render(row).map(split)).collect::<Result<Vec<_>>>()?;
                table(&std::iter::once(titles).chain(lines).collect::<Vec<_>>());
            }
        }
        Ok(())
    }

    pub fn is_table(&self) -> bool {
        self.format.is_none() && self.output == Output::Table
    }
}

/// Titles for a table's template: the columns' where they are known, else the fields' names.
fn titles(template: &str, columns: &[(&str, &str)]) -> Vec<String> {
    let title = |cell: &str| {
        let name =
            cell.trim_matches(|c: char| "{} ".contains(c)).rsplit(['.', ' ']).next().unwrap_or_default().to_owned();
        columns.iter().find(|(_, field)| *field == name).map_or(name.to_uppercase(), |(title, _)| (*title).to_owned())
    };
    template.replace("\\t", "\t").split('\t').map(title).collect()
}

/// Prints rows under a header, each column as wide as its widest cell.
pub fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", line.join("   ").trim_end());
    }
}

/// `KEY=VALUE` filters, as `ps`, `images` and `events` take them: those of one key are alternatives.
///
/// # Errors
/// It is not of that form, or the key is not one of `known`.
pub fn filters(given: &[String], known: &[&str]) -> Result<Vec<(String, String)>> {
    let filter = |text: &String| -> Result<(String, String)> {
        let split = text.split_once('=');
        let (key, value) = split.ok_or_else(|| anyhow::anyhow!("--filter {text}: not KEY=VALUE"))?;
        anyhow::ensure!(known.contains(&key), "--filter {text}: unknown key: {} are known", known.join(", "));
        Ok((key.to_owned(), value.to_owned()))
    };
    given.iter().map(filter).collect()
}

/// Whether the filters let something through, whose `test` says how it stands to one of them. Labels must all be there.
pub fn passes(filters: &[(String, String)], test: impl Fn(&str, &str) -> bool) -> bool {
    let keys: std::collections::BTreeSet<&str> = filters.iter().map(|(key, _)| key.as_str()).collect();
    keys.into_iter().all(|key| {
        let mut of_key = filters.iter().filter(|(other, _)| other == key).map(|(key, value)| test(key, value));
        if key == "label" { of_key.all(|passed| passed) } else { of_key.any(|passed| passed) }
    })
}

/// Whether labels have `NAME` or `NAME=VALUE`.
pub fn has_label<'l>(mut labels: impl Iterator<Item = (&'l String, &'l String)>, wanted: &str) -> bool {
    labels.any(|(name, value)| match wanted.split_once('=') {
        Some((name_wanted, value_wanted)) => name == name_wanted && value == value_wanted,
        None => name == wanted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_key_are_alternatives_and_of_several_are_conditions() {
        let given: Vec<String> =
            ["status=running", "status=paused", "label=a", "label=b=1"].map(str::to_owned).to_vec();
        let filters = super::filters(&given, &["status", "label"]).unwrap();
        let labels = |b: &str| [("a".to_owned(), String::new()), ("b".to_owned(), b.to_owned())];
        let passed = |status: &str, b: &str| {
            let labels = labels(b);
            passes(&filters, |key, value| match key {
                "status" => value == status,
                _ => has_label(labels.iter().map(|(name, value)| (name, value)), value),
            })
        };
        assert!(passed("running", "1") && passed("paused", "1"));
        assert!(!passed("exited", "1") && !passed("running", "2"));
        assert!(super::filters(&["color=red".into()], &["status"]).is_err());
        assert!(super::filters(&["status".into()], &["status"]).is_err());
    }

    #[test]
    fn a_table_s_template_has_the_titles_of_its_columns() {
        let columns = [("CONTAINER ID", "ID"), ("NAMES", "Names")];
        assert_eq!(titles("{{.ID}}\\t{{.Names}}\\t{{json .Labels}}", &columns), ["CONTAINER ID", "NAMES", "LABELS"]);
    }
}
