"""What a release consists of: the wheel, the bill of materials, licences, the audit."""
