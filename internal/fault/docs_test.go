package fault_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

//go:generate env AUTHSVC_WRITE_DOCS=1 go test -count=1 -run ^TestErrorsPageIsFresh$ .

const errorsPage = "../../docs/errors.md"

// TestErrorsPageIsFresh holds docs/errors.md to the comments of reason.go. With AUTHSVC_WRITE_DOCS set it writes the page.
func TestErrorsPageIsFresh(t *testing.T) {
	t.Parallel()
	want := renderPage(t)
	if os.Getenv("AUTHSVC_WRITE_DOCS") != "" {
		if err := os.WriteFile(errorsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(errorsPage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/errors.md is stale, run `make gen` (-want +got)\n%s", diff)
	}
}

func renderPage(t *testing.T) string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# Errors\n\nGenerated from `internal/fault/reason.go`. A reason travels as `google.rpc.ErrorInfo.reason` with the domain\n" +
		"`authsvc`, over gRPC and in the JSON of REST; it is what a program should switch on.\n\n| reason | meaning |\n|---|---|\n")
	rows := 0
	for _, decl := range file.Decls {
		block, ok := decl.(*ast.GenDecl)
		if !ok || block.Tok != token.CONST {
			continue
		}
		for _, spec := range block.Specs {
			v := spec.(*ast.ValueSpec)
			reason, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil || v.Doc == nil {
				t.Fatalf("%s has no comment", v.Names[0].Name)
			}
			_, meaning, ok := strings.Cut(strings.Join(strings.Fields(v.Doc.Text()), " "), ": ")
			if !ok {
				t.Fatalf("the comment of %s does not begin with its name and a colon", v.Names[0].Name)
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", reason, meaning)
			rows++
		}
	}
	if rows == 0 {
		t.Fatal("reason.go holds no reasons")
	}
	return b.String()
}
