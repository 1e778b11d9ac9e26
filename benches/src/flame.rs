//! Where time went, as a picture: stacks of samples, drawn as SVG by hand.
//!
//! A box is a function, as wide as the samples in which it was on the stack, and stands on its caller. The text comes
//! from `perf script`; what does not look like a stack in it is passed over.

use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 1_400.0;
const ROW: f64 = 17.0;
const TOP: f64 = 44.0;
/// Narrower boxes are left out: nobody could see or hit them.
const BOX_MIN: f64 = 0.4;
/// What a letter of the text takes.
const LETTER: f64 = 6.6;
const USER: &str = "#f4a261";
const KERNEL: &str = "#8ecae6";

/// Samples by their stacks: the tree of callers and callees.
#[derive(Debug, Default)]
pub struct Flame {
    /// Samples in which this function was on the stack.
    samples: u64,
    is_kernel: bool,
    callees: BTreeMap<String, Flame>,
}

impl Flame {
    /// Reads what `perf script -F comm,ip,sym,dso` prints: a line with the thread's name, then the stack from the
    /// innermost function on, then an empty line.
    pub fn read(text: &str) -> Self {
        let mut flame = Self::default();
        let (mut thread, mut stack) = ("", Vec::new());
        for line in text.lines().chain([""]) {
            if line.trim().is_empty() {
                if !stack.is_empty() {
                    flame.add(thread, &stack);
                }
                stack.clear();
            } else if line.starts_with(char::is_whitespace) {
                stack.extend(frame(line));
            } else {
                thread = line.trim();
            }
        }
        flame
    }

    fn add(&mut self, thread: &str, stack: &[(&str, bool)]) {
        self.samples += 1;
        let mut at = self;
        for (name, is_kernel) in std::iter::once(&(thread, false)).chain(stack.iter().rev()) {
            at = at.callees.entry((*name).to_owned()).or_default();
            at.samples += 1;
            at.is_kernel = *is_kernel;
        }
    }

    /// All samples.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Functions and the samples in which they were innermost, most first.
    pub fn innermost(&self) -> Vec<(&str, u64)> {
        let mut counts = BTreeMap::new();
        self.count_innermost(&mut counts);
        let mut counts: Vec<(&str, u64)> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }

    fn count_innermost<'a>(&'a self, counts: &mut BTreeMap<&'a str, u64>) {
        for (name, callee) in &self.callees {
            let own =
                callee.samples - callee.callees.values().map(|below| below.samples).sum::<u64>();
            if own > 0 {
                *counts.entry(name).or_default() += own;
            }
            callee.count_innermost(counts);
        }
    }

    fn depth(&self) -> usize {
        self.callees.values().map(|callee| 1 + callee.depth()).max().unwrap_or(0)
    }

    /// Draws it under a title.
    pub fn draw(&self, title: &str) -> String {
        let height = TOP + ROW * (self.depth() as f64 + 1.0);
        let mut picture = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\n\
             <style>text{{font:11px sans-serif;fill:#222}} rect{{stroke:#fff;stroke-width:.5}}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"8\" y=\"18\">{}</text>\n<text x=\"8\" y=\"34\">{} samples; orange is ours, blue is the kernel's</text>\n",
            escaped(title),
            self.samples,
        );
        let scale = WIDTH / self.samples.max(1) as f64;
        self.draw_callees(&mut picture, 0.0, height - ROW, scale);
        picture.push_str("</svg>\n");
        picture
    }

    fn draw_callees(&self, picture: &mut String, mut left: f64, top: f64, scale: f64) {
        for (name, callee) in &self.callees {
            let width = callee.samples as f64 * scale;
            if width >= BOX_MIN {
                let color = if callee.is_kernel { KERNEL } else { USER };
                let (name, share) = (escaped(name), width / WIDTH * 100.0);
                let letters = ((width - 4.0) / LETTER).max(0.0) as usize;
                // Whole or not at all: a cut could go through an escape.
                let text = if name.len() <= letters { name.as_str() } else { "" };
                // Writing to a string cannot fail.
                let _ = writeln!(
                    picture,
                    "<g><title>{name}: {} samples, {share:.1} %</title><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{ROW}\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{:.1}\">{text}</text></g>",
                    callee.samples,
                    left + 2.0,
                    top + 12.0,
                );
                callee.draw_callees(picture, left, top - ROW, scale);
            }
            left += width;
        }
    }
}

/// The function of a line `address name (object)`, and whether it is the kernel's.
fn frame(line: &str) -> Option<(&str, bool)> {
    let (_, rest) = line.trim().split_once(' ')?;
    let (name, object) = rest.rsplit_once(" (")?;
    let name = name.split_once("+0x").map_or(name, |(name, _)| name);
    Some((name.trim(), object.starts_with("[kernel") || object.starts_with("[guest.kernel")))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "reactor-0 \n\tffff inner<T> ([kernel.kallsyms])\n\t55 turn+0x1f (/bin/gateway)\n\n\
                        reactor-0 \n\t55 turn (/bin/gateway)\n\nnoise\n\nother \n\t1 main (/bin/gateway)\n";

    #[test]
    fn stacks_become_a_tree_of_callers() {
        let flame = Flame::read(TEXT);
        assert_eq!((flame.samples(), flame.depth()), (3, 3));
        let turn = &flame.callees["reactor-0"].callees["turn"];
        assert_eq!((turn.samples, turn.is_kernel), (2, false));
        assert!(turn.callees["inner<T>"].is_kernel);
        assert_eq!(flame.innermost(), [("inner<T>", 1), ("main", 1), ("turn", 1)]);
    }

    #[test]
    fn a_picture_is_whole_and_its_names_are_escaped() {
        let picture = Flame::read(TEXT).draw("a & b");
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
        assert!(picture.contains("inner&lt;T&gt;") && picture.contains("a &amp; b"));
        assert_eq!(picture.matches("<g>").count(), picture.matches("</g>").count());
        assert_eq!(Flame::read("").draw("").matches("<g>").count(), 0);
    }
}
