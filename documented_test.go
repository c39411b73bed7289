package replicator_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// parsed returns the files that match a pattern.
func parsed(t *testing.T, pattern string, tests bool) (files []*ast.File) {
	names, err := filepath.Glob(pattern)
	require.NoError(t, err)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") == tests {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
			require.NoError(t, err)
			files = append(files, file)
		}
	}
	require.NotEmpty(t, files, pattern)
	return files
}

// TestExportedNamesHaveComments: whatever users can see says what it is.
func TestExportedNamesHaveComments(t *testing.T) {
	names := 0
	for _, pattern := range []string{"*.go", "statuspage/*.go", "metrics/*.go"} {
		described := false // the package
		for _, file := range parsed(t, pattern, false) {
			described = described || file.Doc != nil
			need := func(name *ast.Ident, comments ...*ast.CommentGroup) {
				if name.IsExported() {
					names++
					require.True(t, slices.ContainsFunc(comments, func(c *ast.CommentGroup) bool { return c != nil }), "%s: %s has no comment", pattern, name)
				}
			}
			for _, d := range file.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil || receives(d).IsExported() {
						need(d.Name, d.Doc)
					}
				case *ast.GenDecl:
					for _, spec := range d.Specs {
						switch spec := spec.(type) {
						case *ast.TypeSpec:
							need(spec.Name, d.Doc, spec.Doc, spec.Comment)
						case *ast.ValueSpec:
							for _, name := range spec.Names {
								need(name, d.Doc, spec.Doc, spec.Comment)
							}
						}
					}
				}
			}
		}
		require.True(t, described, "%s: the package has no comment", pattern)
	}
	require.Greater(t, names, 100)
}

// receives returns the name of the type that a method is of.
func receives(d *ast.FuncDecl) *ast.Ident {
	of := d.Recv.List[0].Type
	if star, is := of.(*ast.StarExpr); is {
		of = star.X
	}
	if generic, is := of.(*ast.IndexExpr); is {
		of = generic.X
	}
	return of.(*ast.Ident)
}

// TestUsesHaveExamples: every function that is exported, and every method of a Replicator
// and of a Snapshot, is used in an example.
func TestUsesHaveExamples(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, file := range parsed(t, "*_test.go", true) {
		for _, d := range file.Decls {
			f, is := d.(*ast.FuncDecl)
			if !is || !strings.HasPrefix(f.Name.Name, "Example") {
				continue
			}
			require.NotNil(t, f.Doc, "%s has no comment", f.Name.Name)
			ast.Inspect(f, func(n ast.Node) bool {
				if s, is := n.(*ast.SelectorExpr); is {
					used[s.Sel.Name] = true
				}
				return true
			})
		}
	}
	scope := checkPackage(t).types.Scope()
	var missing []string
	for _, name := range scope.Names() {
		switch object := scope.Lookup(name).(type) {
		case *types.Func:
			if object.Exported() && !used[name] {
				missing = append(missing, name)
			}
		case *types.TypeName:
			named, is := object.Type().(*types.Named)
			if !is || name != "Replicator" && name != "Snapshot" {
				continue
			}
			for method := range named.Methods() {
				if method.Exported() && !used[method.Name()] {
					missing = append(missing, name+"."+method.Name())
				}
			}
		}
	}
	require.Empty(t, missing)
}
