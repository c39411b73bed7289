module github.com/level-replicator/replicator

go 1.25.0

require (
	github.com/stretchr/testify v1.12.1
	github.com/syndtr/goleveldb v1.0.1-0.20220721030215-126854af5e6d
)

require (
	github.com/golang/snappy v0.0.4 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
