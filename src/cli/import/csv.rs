//! Comma-separated values as RFC 4180 writes them: the first record names the columns.

/// One record, and the line it begins in.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// From 1.
    pub line: usize,
    /// Its fields.
    pub fields: Vec<String>,
}

/// All records of a text. Blank lines between records are none. Errors: the line of a quote that is not closed, or that
/// stands where none may.
pub fn records(text: &str) -> Result<Vec<Record>, usize> {
    let mut reader = Reader {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
    };
    let mut records = Vec::new();
    while !reader.rest.is_empty() {
        let line = reader.line;
        let fields = reader.record()?;
        if fields != [""] {
            records.push(Record { line, fields });
        }
    }
    Ok(records)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    fn record(&mut self) -> Result<Vec<String>, usize> {
        let mut fields = Vec::new();
        loop {
            fields.push(match self.rest.strip_prefix('"') {
                Some(rest) => {
                    self.rest = rest;
                    self.quoted()?
                }
                None => self.bare()?,
            });
            match self.rest.strip_prefix(',') {
                Some(rest) => self.rest = rest,
                None => break,
            }
        }
        self.end_of_line()?;
        Ok(fields)
    }

    fn bare(&mut self) -> Result<String, usize> {
        let end = self.rest.find([',', '\n', '\r']);
        let (field, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        match field.contains('"') {
            false => Ok(field.to_owned()),
            true => Err(self.line),
        }
    }

    /// Behind the opening quote.
    fn quoted(&mut self) -> Result<String, usize> {
        let opened = self.line;
        let mut field = String::new();
        loop {
            let (part, rest) = self.rest.split_once('"').ok_or(opened)?;
            self.line += part.matches('\n').count();
            field.push_str(part);
            match rest.strip_prefix('"') {
                Some(rest) => {
                    field.push('"');
                    self.rest = rest;
                }
                None => {
                    self.rest = rest;
                    return Ok(field);
                }
            }
        }
    }

    fn end_of_line(&mut self) -> Result<(), usize> {
        let rest = self.rest.strip_prefix('\r').unwrap_or(self.rest);
        match rest.strip_prefix('\n') {
            Some(rest) => self.rest = rest,
            None if rest.is_empty() => self.rest = rest,
            None => return Err(self.line),
        }
        self.line += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(usize, Vec<String>)>, usize> {
        let records = records(text)?.into_iter();
        Ok(records.map(|r| (r.line, r.fields)).collect())
    }

    fn row(line: usize, fields: &[&str]) -> (usize, Vec<String>) {
        (line, fields.iter().map(|f| (*f).to_owned()).collect())
    }

    #[test]
    fn fields_are_read_with_their_quotes_and_lines() {
        assert_eq!(
            read("a,b\n1,2\n"),
            Ok(vec![row(1, &["a", "b"]), row(2, &["1", "2"])])
        );
        assert_eq!(
            read("\u{feff}a,b\r\n\r\n\"x,\"\"y\"\"\nz\",\r\nlast,\"\""),
            Ok(vec![
                row(1, &["a", "b"]),
                row(3, &["x,\"y\"\nz", ""]),
                row(5, &["last", ""]),
            ])
        );
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read("a"), Ok(vec![row(1, &["a"])]));
        assert_eq!(read("a,"), Ok(vec![row(1, &["a", ""])]));
    }

    #[test]
    fn quotes_in_the_wrong_place_are_named_by_line() {
        assert_eq!(read("a\n\"b\nc"), Err(2));
        assert_eq!(read("a\nb\"c\n"), Err(2));
        assert_eq!(read("a\n\"b\"c\n"), Err(2));
        assert_eq!(read("a\n\"b\nb\"c\n"), Err(3));
    }
}
