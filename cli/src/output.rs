//! How answers look: a table for people, JSON and YAML for programs.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// What goes to standard output, and whether all is well.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) text: String,
    pub(crate) is_well: bool,
}

impl Printed {
    pub(crate) fn well(text: String) -> Self {
        Self { text, is_well: true }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// How the answer is written.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// The form of the answer
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub(crate) format: Format,
}

impl Output {
    /// `data` as it is for programs, or as `table` draws it.
    pub(crate) fn print<T: Serialize>(
        &self,
        data: &T,
        table: impl FnOnce() -> String,
    ) -> anyhow::Result<String> {
        Ok(match self.format {
            Format::Table => table(),
            Format::Json => serde_json::to_string_pretty(data)? + "\n",
            Format::Yaml => serde_saphyr::to_string(data)?,
        })
    }
}

/// A table without lines, as kubectl draws it; `empty` when there is nothing to show.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return format!("{empty}\n");
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_kubectls() {
        let rows = vec![vec!["shop/web".to_owned(), "1".to_owned()], vec!["a".into(), "22".into()]];
        assert_eq!(
            table(&["NAME", "RPS"], rows, "-"),
            "NAME      RPS\nshop/web  1\na         22\n"
        );
        assert_eq!(table(&["NAME"], Vec::new(), "nothing yet"), "nothing yet\n");
    }
}
